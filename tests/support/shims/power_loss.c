/* Keeps, beside a directory, what would be on disk if the power failed now. See PowerLoss in shims.py for the model.
 *
 * The control file names the directory and, on a second line, the state directory:
 *   lock           held (flock) during each tracked call, by all processes, and by the test that takes a snapshot;
 *                  holds the log that is being appended to, and its size before, in case its writer is killed
 *   pending/KEY    what happened to a file since its last fsync: struct record, followed by the data that was written
 *   inodes/KEY     the file's durable content
 *   disk/...       the durable directory tree, its files hard links into inodes/
 *   missed         paths of files that changed in a way that is not seen here
 * KEY is inode number and birth time, since inode numbers are given away again at once.
 *
 * A call is logged before it is made, and both under the lock, so a killed process leaves the two in step. */
#include "shim.h"
#include <dirent.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define VARIABLE "BALSAM_SHIM_POWER_LOSS"
#define ROOM (2 * PATH_MAX)

struct record {
    int64_t truncates; /* 1: the file is cut or extended to `offset`; 0: `length` bytes follow, written at `offset` */
    int64_t offset, length;
};

struct file {
    char key[80], path[PATH_MAX];
    int is_directory;
    off_t size;
};

static const char *directory, *state; /* NULL: nothing is tracked */

__attribute__((constructor)) static void start(void) {
    static char text[2 * PATH_MAX];
    if (!control(VARIABLE, text, sizeof text)) return;
    directory = strtok(text, "\n");
    state = strtok(NULL, "\n");
    if (!state) abort();
}

static int ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* SQLite's shared memory: mapped, and made anew after a crash. */
static int is_shared_memory(const char *path) { return ends_with(path, "-shm") || ends_with(path, "-shm (deleted)"); }

static int key_of(int fd, const char *name, int flags, struct file *file) {
    struct statx status;
    if (syscall(SYS_statx, fd, name, flags, STATX_TYPE | STATX_INO | STATX_SIZE | STATX_BTIME, &status) != 0) return 0;
    file->is_directory = S_ISDIR(status.stx_mode);
    file->size = status.stx_size;
    snprintf(file->key, sizeof file->key, "%llu-%lld-%u", (unsigned long long)status.stx_ino,
             (long long)status.stx_btime.tv_sec, status.stx_btime.tv_nsec);
    return S_ISREG(status.stx_mode) || file->is_directory;
}

/* Whether an open file is a tracked one. Nothing is remembered of descriptors, so dup and fork need no care. */
static int find(int fd, struct file *file) {
    int kept = errno;
    int found = state && key_of(fd, "", AT_EMPTY_PATH, file);
    if (found) {
        size_t length = strlen(directory);
        path_of(fd, file->path);
        found = strncmp(file->path, directory, length) == 0 && (file->path[length] == '/' || !file->path[length]) &&
                !is_shared_memory(file->path);
    }
    errno = kept;
    return found;
}

static void place(char *path, const char *folder, const char *name) {
    if (snprintf(path, ROOM, "%s/%s/%s", state, folder, name) >= ROOM) abort();
}

struct intent {
    char key[80];
    int64_t size_before;
};

/* Cut off a record that is not whole: its writer was killed. */
static void mend(const struct intent *intent) {
    struct record record;
    char path[ROOM];
    place(path, "pending", intent->key);
    int fd = raw_open(path, O_RDWR);
    if (fd < 0) return;
    int64_t due = intent->size_before + (int64_t)sizeof record;
    if (syscall(SYS_pread64, fd, &record, sizeof record, intent->size_before) == sizeof record) due += record.length;
    if (syscall(SYS_lseek, fd, 0, SEEK_END) < due) syscall(SYS_ftruncate, fd, intent->size_before);
    raw_close(fd);
}

static int lock(void) {
    char path[ROOM];
    struct intent intent;
    place(path, ".", "lock");
    int fd = raw_open(path, O_RDWR | O_CREAT);
    while (syscall(SYS_flock, fd, LOCK_EX) != 0)
        if (errno != EINTR) abort();
    if (syscall(SYS_pread64, fd, &intent, sizeof intent, 0) == sizeof intent) mend(&intent);
    return fd;
}

static void unlock(int fd, int kept) {
    syscall(SYS_ftruncate, fd, 0);
    raw_close(fd);
    errno = kept;
}

/* ---------------------------------------------------------------------------------------------- writing and cutting */

/* Append to a file's pending log; returns its size before. */
static off_t log_record(int held, const struct file *file, const struct record *record, const struct iovec *parts) {
    struct intent intent = {0};
    char path[ROOM];
    place(path, "pending", file->key);
    int fd = raw_open(path, O_WRONLY | O_APPEND | O_CREAT);
    memcpy(intent.key, file->key, sizeof intent.key);
    intent.size_before = syscall(SYS_lseek, fd, 0, SEEK_END);
    syscall(SYS_pwrite64, held, &intent, sizeof intent, 0);
    if (fd < 0 || syscall(SYS_write, fd, record, sizeof *record) != sizeof *record) abort();
    for (int64_t left = record->length; left > 0; parts++) {
        int64_t size = (int64_t)parts->iov_len < left ? (int64_t)parts->iov_len : left;
        if (syscall(SYS_write, fd, parts->iov_base, size) != size) abort();
        left -= size;
    }
    raw_close(fd);
    return intent.size_before;
}

static void forget_since(const struct file *file, off_t before) {
    char path[ROOM];
    place(path, "pending", file->key);
    syscall(SYS_truncate, path, before);
}

static ssize_t tracked_write(int fd, const struct file *file, const struct iovec *parts, int count, off_t offset) {
    size_t total = 0;
    for (int i = 0; i < count; i++) total += parts[i].iov_len;
    int held = lock();
    struct record record = {0, offset, total};
    if (offset < 0) {
        struct stat status;
        int appends = syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
        record.offset = appends && !fstat(fd, &status) ? status.st_size : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    }
    off_t before = log_record(held, file, &record, parts);
    ssize_t done = offset < 0 ? NEXT(writev)(fd, parts, count) : NEXT(pwritev64)(fd, parts, count, offset);
    int kept = errno;
    if (done != (ssize_t)total) {
        forget_since(file, before);
        record.length = done;
        if (done > 0) log_record(held, file, &record, parts);
    }
    unlock(held, kept);
    return done;
}

#define WRAP_WRITE(name, parameters, arguments, parts, count, offset)                                      \
    ssize_t name parameters {                                                                              \
        struct file file;                                                                                  \
        return find(fd, &file) ? tracked_write(fd, &file, parts, count, offset) : NEXT(name) arguments;    \
    }
#define ONE (&(struct iovec){(void *)data, size})

WRAP_WRITE(write, (int fd, const void *data, size_t size), (fd, data, size), ONE, 1, -1)
WRAP_WRITE(pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at), ONE, 1, at)
WRAP_WRITE(pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at), ONE, 1, at)
WRAP_WRITE(writev, (int fd, const struct iovec *list, int count), (fd, list, count), list, count, -1)
WRAP_WRITE(pwritev, (int fd, const struct iovec *list, int count, off_t at), (fd, list, count, at), list, count, at)
WRAP_WRITE(pwritev64, (int fd, const struct iovec *list, int count, off64_t at), (fd, list, count, at), list, count, at)

static int tracked_truncate(int fd, const struct file *file, off_t size) {
    int held = lock();
    off_t before = log_record(held, file, &(struct record){1, size, 0}, NULL);
    int result = NEXT(ftruncate64)(fd, size), kept = errno;
    if (result) forget_since(file, before);
    unlock(held, kept);
    return result;
}

#define WRAP_TRUNCATE(name, type)                                                             \
    int name(int fd, type size) {                                                             \
        struct file file;                                                                     \
        return find(fd, &file) ? tracked_truncate(fd, &file, size) : NEXT(name)(fd, size);    \
    }

WRAP_TRUNCATE(ftruncate, off_t)
WRAP_TRUNCATE(ftruncate64, off64_t)

/* Opening may empty a file. It is done in two steps, so that the emptying is logged. */
#define WRAP_OPEN(name)                                                                       \
    int name(const char *path, int flags, ...) {                                              \
        va_list rest;                                                                         \
        va_start(rest, flags);                                                                \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;               \
        va_end(rest);                                                                         \
        int fd = NEXT(name)(path, state ? flags & ~O_TRUNC : flags, mode);               \
        struct file file;                                                                     \
        if (!state || fd < 0 || !(flags & O_TRUNC)) return fd;                           \
        if (find(fd, &file)) tracked_truncate(fd, &file, 0);                                  \
        else if (NEXT(ftruncate64)(fd, 0) != 0) errno = 0; /* a pipe or a device */           \
        return fd;                                                                            \
    }

WRAP_OPEN(open)
WRAP_OPEN(open64)

/* ------------------------------------------------------------------------------------------------- forcing to disk */

static void note_missed(const char *name) {
    char path[ROOM];
    place(path, ".", "missed");
    int fd = raw_open(path, O_WRONLY | O_APPEND | O_CREAT);
    syscall(SYS_write, fd, name, strlen(name));
    syscall(SYS_write, fd, "\n", 1);
    raw_close(fd);
}

/* Carry the pending log over into the durable content. */
static void make_durable(const struct file *file) {
    char path[ROOM], data[65536];
    struct record record;
    place(path, "inodes", file->key);
    int to = raw_open(path, O_WRONLY | O_CREAT);
    place(path, "pending", file->key);
    int from = raw_open(path, O_RDONLY);
    while (from >= 0 && syscall(SYS_read, from, &record, sizeof record) == sizeof record) {
        if (record.truncates) syscall(SYS_ftruncate, to, record.offset);
        while (record.length > 0) {
            int64_t size = record.length < (int64_t)sizeof data ? record.length : (int64_t)sizeof data;
            if (syscall(SYS_read, from, data, size) != size) abort();
            if (syscall(SYS_pwrite64, to, data, size, record.offset) != size) abort();
            record.offset += size;
            record.length -= size;
        }
    }
    if (from >= 0) {
        raw_close(from);
        syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    }
    if (syscall(SYS_lseek, to, 0, SEEK_END) < file->size) note_missed(file->path);
    raw_close(to);
}

static void make_parents(char *path) {
    for (char *slash = strchr(path + strlen(state) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        mkdir(path, 0700);
        *slash = '/';
    }
    mkdir(path, 0700);
}

static void keep_entry(DIR *from, const char *name, const char *folder) {
    struct file file;
    char path[ROOM], inode[ROOM], link_name[ROOM];
    if (!key_of(dirfd(from), name, AT_SYMLINK_NOFOLLOW, &file)) return;
    if (snprintf(path, ROOM, "%s/%s", folder, name) >= ROOM) abort();
    if (file.is_directory) {
        mkdir(path, 0700);
        return;
    }
    place(inode, "inodes", file.key);
    place(link_name, ".", "link");
    raw_close(raw_open(inode, O_WRONLY | O_CREAT));
    if (link(inode, link_name) != 0 || rename(link_name, path) != 0) abort();
    unlink(link_name); /* stays where both were the same file already */
}

/* Take over a directory's present entries; what was removed goes out of the durable tree. */
static void make_entries_durable(const struct file *file) {
    char folder[ROOM], path[ROOM], gone[ROOM];
    struct stat status;
    static unsigned number;
    place(folder, "disk", file->path + strlen(directory));
    while (ends_with(folder, "/")) folder[strlen(folder) - 1] = 0;
    make_parents(folder);
    DIR *from = opendir(file->path), *to = opendir(folder);
    if (!to) abort();
    for (struct dirent *entry; from && (entry = readdir(from));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") && !is_shared_memory(entry->d_name))
            keep_entry(from, entry->d_name, folder);
    for (struct dirent *entry; from && (entry = readdir(to));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (fstatat(dirfd(from), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) == 0) continue;
        if (snprintf(path, ROOM, "%s/%s", folder, entry->d_name) >= ROOM) abort();
        if (unlink(path) == 0) continue;
        snprintf(gone, ROOM, "%s/gone.%d.%u", state, getpid(), number++);
        rename(path, gone); /* a whole directory */
    }
    if (from) closedir(from);
    closedir(to);
}

static int tracked_sync(int fd, int (*next)(int)) {
    struct file file;
    if (!find(fd, &file)) return next(fd);
    int result = next(fd), kept = errno;
    int held = lock();
    find(fd, &file); /* again: its size now */
    if (result) { /* Linux takes the pages for written; nothing writes them later */
        char path[ROOM];
        place(path, "pending", file.key);
        if (!file.is_directory) syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    } else if (file.is_directory) {
        make_entries_durable(&file);
    } else {
        make_durable(&file);
    }
    unlock(held, kept);
    return result;
}

int fsync(int fd) { return tracked_sync(fd, NEXT(fsync)); }
int fdatasync(int fd) { return tracked_sync(fd, NEXT(fdatasync)); }
