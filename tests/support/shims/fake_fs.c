/* Says that every path is on a file system of another type. Control file: the type's magic number, e.g. "0x6969" for
 * NFS (statfs(2)). */
#include "shim.h"
#include <sys/statfs.h>

#define VARIABLE "BALSAM_SHIM_FAKE_FS"

#define WRAP(name, parameters, arguments)                                 \
    int name parameters {                                                       \
        char text[64];                                                          \
        int result = NEXT(name) arguments;                                      \
        if (!result && control(VARIABLE, text, sizeof text)) {                  \
            status->f_type = strtol(text, NULL, 0);                             \
            hit(VARIABLE);                                                      \
        }                                                                       \
        return result;                                                          \
    }

WRAP(statfs, (const char *path, struct statfs *status), (path, status))
WRAP(statfs64, (const char *path, struct statfs64 *status), (path, status))
WRAP(fstatfs, (int fd, struct statfs *status), (fd, status))
WRAP(fstatfs64, (int fd, struct statfs64 *status), (fd, status))
