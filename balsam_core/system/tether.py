"""Tie the life of a child process to its parent's, and adopt the orphans of dead children: Linux' prctl(2).

Also a script, run by path with ``python -I -S`` (15 ms), that a child runs first: it asks the system for a signal at
the parent's death, then becomes the child's program. A function between fork and exec (``preexec_fn``) is not safe. Its
arguments: the parent's process id, the signal's number, the account to run as (empty for the present one), and the
program's command line.
"""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["become_subreaper"]

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
NOT_FOUND = 127  # as a shell says it


def become_subreaper() -> bool:
    """Let orphaned descendants become children of this process; return whether the system can do that."""
    if sys.platform != "linux":
        return False
    import ctypes

    return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def main(parent: int, number: int, user: str, argv: list[str]) -> None:
    """Become the child's program."""
    import ctypes  # now: the account may have no way to Python's modules

    library = ctypes.CDLL(None, use_errno=True)
    # Before the tie, which a change of the account loosens.
    if user:
        change_account(user)
    if sys.platform == "linux" and library.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        sys.stderr.write("this process will not notice when its parent dies\n")
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


def change_account(user: str) -> None:
    """Give up root for an account."""
    import pwd

    try:
        account = pwd.getpwnam(user)
        os.setgid(account.pw_gid)
        os.initgroups(user, account.pw_gid)
        os.setuid(account.pw_uid)
    except (KeyError, OSError) as err:
        sys.stderr.write(f"can't run as {user}: {err}\n")
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
