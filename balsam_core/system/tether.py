"""Tie the life of a child process to its parent's, and adopt the orphans of dead children: Linux' prctl(2).

This file is also the script that a child runs first (see :func:`command_line`): it asks the system for a signal at the
parent's death, restores the default signal dispositions, and becomes the child's program. It runs by its path, with
``python -I -S``, which takes 15 ms. A function between fork and exec (``preexec_fn``) would not be safe.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
PR_SET_CHILD_SUBREAPER = 36
NOT_FOUND = 127  # the exit code that a shell gives


def become_subreaper() -> bool:
    """Let orphaned descendants become children of this process; return whether the system can do that."""
    if sys.platform != "linux":
        return False
    import ctypes

    return bool(ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def command_line(argv: list[str], *, death_signal: int, user: str = "") -> list[str]:
    """Return the command line of a child that gets a signal when this process dies.

    Args:
        argv: The child's program and its arguments.
        death_signal: The signal; nothing is sent where the system has no such thing.
        user: The account to run as, where this process may choose; empty for the present one.
    """
    # -I -S: nothing of the user's Python settings, and nothing that takes time.
    return [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(int(death_signal)), user, *argv]


def main(parent: int, death_signal: int, user: str, argv: list[str]) -> None:
    """Become the child's program."""
    import ctypes  # before the change of account, which may have no access to Python's modules

    library = ctypes.CDLL(None, use_errno=True)
    if user:  # before prctl, whose effect a change of account undoes
        change_account(user)
    if sys.platform == "linux" and library.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        sys.stderr.write("this process will not notice when its parent dies\n")
    if os.getppid() != parent:  # it died before prctl
        sys.exit(1)
    # An ignored signal stays ignored in the next program; Python itself ignores two of these.
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
