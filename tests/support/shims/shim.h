/* What all shims share. A shim is told what to do by a small text file, its control file, whose path stands in an
 * environment variable. The file is read at every intercepted call, so a running program can be switched; without the
 * file the shim is idle. Each fault that a shim inflicts adds one byte to the file CONTROL.hits.
 *
 * Files of our own are reached by raw system calls: other shims must not see them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The function of this name that would be called without this shim: another shim's, or libc's. */
#define NEXT(name)                                            \
    ({                                                        \
        static __typeof__(&name) next;                        \
        if (!next) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
        next;                                                 \
    })

static inline int raw_open(const char *path, int flags) {
    return syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600);
}

static inline void raw_close(int fd) { syscall(SYS_close, fd); }

/* Read the control file; 0 if there is none or it is empty. Keeps errno. */
static inline int control(const char *variable, char *text, size_t size) {
    int kept = errno;
    const char *path = getenv(variable);
    ssize_t length = 0;
    int fd = path ? raw_open(path, O_RDONLY) : -1;
    if (fd >= 0) {
        length = syscall(SYS_read, fd, text, size - 1);
        raw_close(fd);
    }
    text[length > 0 ? length : 0] = 0;
    errno = kept;
    return length > 0;
}

/* Count one inflicted fault. Keeps errno. */
static inline void hit(const char *variable) {
    int kept = errno;
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s.hits", getenv(variable));
    int fd = raw_open(path, O_WRONLY | O_APPEND | O_CREAT);
    if (fd >= 0) {
        syscall(SYS_write, fd, ".", 1);
        raw_close(fd);
    }
    errno = kept;
}

/* The path of an open file; empty for sockets, pipes and the like. Keeps errno. */
static inline void path_of(int fd, char path[PATH_MAX]) {
    int kept = errno;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length > 0 && path[0] == '/' ? length : 0] = 0;
    errno = kept;
}
