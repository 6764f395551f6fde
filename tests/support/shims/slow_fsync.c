/* Adds time to each fsync and fdatasync. Control file: "MICROSECONDS". Each call counts as a hit. */
#include "shim.h"
#include <time.h>

#define VARIABLE "BALSAM_SHIM_SLOW_FSYNC"

static void wait_a_little(void) {
    char text[64];
    if (!control(VARIABLE, text, sizeof text)) return;
    long microseconds = atol(text);
    struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};
    int kept = errno;
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
    errno = kept;
    hit(VARIABLE);
}

int fsync(int fd) {
    wait_a_little();
    return NEXT(fsync)(fd);
}

int fdatasync(int fd) {
    wait_a_little();
    return NEXT(fdatasync)(fd);
}
