/* Makes calls on some files fail. Control file: "ERRNO EVERY CALLS PART-OF-PATH", where EVERY N fails each Nth matching
 * call of a process and CALLS is a comma-separated choice of fsync, write, truncate, read, open (for making a file). */
#include "shim.h"
#include <stdarg.h>
#include <stdatomic.h>
#include <sys/uio.h>

#define VARIABLE "BALSAM_SHIM_FAIL_IO"

static int fails(const char *call, int fd, const char *path) {
    char text[PATH_MAX + 128], calls[64], name[PATH_MAX];
    int number, part = 0;
    long every;
    static atomic_long count;
    if (!control(VARIABLE, text, sizeof text)) return 0;
    if (sscanf(text, "%d %ld %63s %n", &number, &every, calls, &part) < 3 || !strstr(calls, call)) return 0;
    if (!path) path_of(fd, name), path = name;
    text[strcspn(text, "\n")] = 0;
    if (!*path || !strstr(path, text + part) || ++count % every) return 0;
    hit(VARIABLE);
    errno = number;
    return 1;
}

#define WRAP(result, name, call, parameters, arguments) \
    result name parameters { return fails(call, fd, NULL) ? -1 : NEXT(name) arguments; }

WRAP(int, fsync, "fsync", (int fd), (fd))
WRAP(int, fdatasync, "fsync", (int fd), (fd))
WRAP(ssize_t, write, "write", (int fd, const void *data, size_t size), (fd, data, size))
WRAP(ssize_t, pwrite, "write", (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
WRAP(ssize_t, pwrite64, "write", (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
WRAP(ssize_t, writev, "write", (int fd, const struct iovec *parts, int count), (fd, parts, count))
WRAP(ssize_t, pwritev, "write", (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
WRAP(ssize_t, pwritev64, "write", (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at))
WRAP(int, ftruncate, "truncate", (int fd, off_t size), (fd, size))
WRAP(int, ftruncate64, "truncate", (int fd, off64_t size), (fd, size))
WRAP(ssize_t, read, "read", (int fd, void *data, size_t size), (fd, data, size))
WRAP(ssize_t, pread, "read", (int fd, void *data, size_t size, off_t at), (fd, data, size, at))
WRAP(ssize_t, pread64, "read", (int fd, void *data, size_t size, off64_t at), (fd, data, size, at))

#define WRAP_OPEN(name)                                                         \
    int name(const char *path, int flags, ...) {                                \
        va_list rest;                                                           \
        va_start(rest, flags);                                                  \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                           \
        if (flags & O_CREAT && fails("open", -1, path)) return -1;              \
        return NEXT(name)(path, flags, mode);                                   \
    }

WRAP_OPEN(open)
WRAP_OPEN(open64)
