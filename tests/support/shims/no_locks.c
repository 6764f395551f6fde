/* File locks that lie or are missing. Control file: "lie" (every lock is granted, none is held), or an errno with which
 * each attempt to lock fails. */
#include "shim.h"
#include <stdarg.h>
#include <sys/file.h>

#define VARIABLE "BALSAM_SHIM_NO_LOCKS"

/* Whether the call is answered here; then the answer is in *result. */
static int answered(int *result) {
    char text[64];
    if (!control(VARIABLE, text, sizeof text)) return 0;
    hit(VARIABLE);
    *result = strncmp(text, "lie", 3) == 0 ? 0 : -1;
    if (*result) errno = atoi(text);
    return 1;
}

static int is_lock(int command) {
    return command == F_GETLK || command == F_SETLK || command == F_SETLKW || command == F_OFD_GETLK ||
           command == F_OFD_SETLK || command == F_OFD_SETLKW;
}

#define WRAP_FCNTL(name)                                                                               \
    int name(int fd, int command, ...) {                                                               \
        va_list rest;                                                                                  \
        va_start(rest, command);                                                                       \
        void *argument = va_arg(rest, void *);                                                         \
        va_end(rest);                                                                                  \
        int result;                                                                                    \
        if (is_lock(command) && answered(&result)) {                                                   \
            if (!result && (command == F_GETLK || command == F_OFD_GETLK))                             \
                ((struct flock *)argument)->l_type = F_UNLCK;                                          \
            return result;                                                                             \
        }                                                                                              \
        return NEXT(name)(fd, command, argument);                                                      \
    }

WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

int flock(int fd, int operation) {
    int result;
    return answered(&result) ? result : NEXT(flock)(fd, operation);
}

int lockf(int fd, int command, off_t size) {
    int result;
    return answered(&result) ? result : NEXT(lockf)(fd, command, size);
}

int lockf64(int fd, int command, off64_t size) {
    int result;
    return answered(&result) ? result : NEXT(lockf64)(fd, command, size);
}
