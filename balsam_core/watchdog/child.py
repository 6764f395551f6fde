"""What a server's process runs first: it ties its life to the watchdog's, then becomes the server.

A script of its own, run by path with ``python -I -S`` (15 ms): a function between fork and exec (``preexec_fn``) is not
safe. Called with the watchdog's process id, the signal to get when the watchdog dies, the account to run as (empty for
the present one), and the server's command.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
NOT_FOUND = 127  # as a shell says it


def main(parent: int, number: int, user: str, argv: list[str]) -> None:
    """Become the server."""
    import ctypes  # now: the account may have no way to Python's modules

    library = ctypes.CDLL(None, use_errno=True)
    # Before the tie, which a change of the account loosens.
    if user:
        become(user)
    if sys.platform == "linux" and library.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        sys.stderr.write("the server will not notice when its watchdog dies\n")
    if os.getppid() != parent:  # it died before the tie
        sys.exit(1)
    # What is ignored stays so in the next program; Python itself ignores two of these.
    for name in ("SIGPIPE", "SIGXFSZ", "SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGCHLD"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvp(argv[0], argv)  # noqa: S606  (no shell is the point)
    except OSError as err:
        sys.stderr.write(f"{argv[0]}: {(err.strerror or str(err)).lower()}\n")
        sys.exit(NOT_FOUND)


def become(user: str) -> None:
    """Give up root for an account."""
    import pwd

    try:
        account = pwd.getpwnam(user)
        os.setgid(account.pw_gid)
        os.initgroups(user, account.pw_gid)
        os.setuid(account.pw_uid)
    except (KeyError, OSError) as err:
        sys.stderr.write(f"the server can't run as {user}: {err}\n")
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
