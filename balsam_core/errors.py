"""The error classes of Balsam, each with a code and an exit code.

Every error for users derives from :class:`BalsamError`. Its ``code`` is a short stable word that is sent over the
network and appears in JSON output; its ``exit_code`` is what the command line returns. Errors of database drivers and
of the operating system are converted to these classes in one place each, and chained with ``raise ... from``.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AddressError",
    "BackendError",
    "BalsamError",
    "Busy",
    "Conflict",
    "Corrupt",
    "DBDirError",
    "Expired",
    "InvalidInput",
    "JobsFailed",
    "NoResources",
    "NotFound",
    "OutcomeUnknown",
    "PartlyDone",
    "SchemaMismatch",
    "ServerNotRunning",
    "SettingsError",
    "TimedOut",
    "TooLarge",
    "Unavailable",
    "error_class",
]

_BY_CODE: dict[str, type[BalsamError]] = {}


class BalsamError(Exception):
    """Base of all errors; the message is one line that names the thing, the fault and the remedy."""

    code: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        _BY_CODE[cls.code] = cls

    @property
    def message(self) -> str:
        """The text for the user."""
        return str(self)


class InvalidInput(BalsamError):
    """A value that can never be right: a bad number, a hostile name, a dependency cycle."""

    code = "invalid-input"
    exit_code = 5


class TooLarge(InvalidInput):
    """A call holds more than one message may; nothing was sent."""

    code = "too-large"


class NotFound(BalsamError):
    """The named job, app, workflow or file does not exist."""

    code = "not-found"
    exit_code = 3


class Conflict(BalsamError):
    """The request contradicts what is stored: a taken name, a state that has moved on, a lost lease."""

    code = "conflict"
    exit_code = 4


class Unavailable(BalsamError):
    """The database can't be reached or can't take the write now; nothing was changed."""

    code = "unavailable"
    exit_code = 6


class ServerNotRunning(Unavailable):
    """This database needs its server, and none is published."""

    code = "server-not-running"


class AddressError(Unavailable):
    """``dbwriter_address`` is missing, can't be read or can't be understood; nothing was changed."""

    code = "address"


class Busy(Unavailable):
    """Others held the database until the deadline passed; nothing was changed."""

    code = "busy"


class Expired(Unavailable):
    """The call reached the database after its deadline; nothing was changed."""

    code = "expired"


class NoResources(Unavailable):
    """The system lacks file descriptors or memory, or a disk fails; nothing was changed, and it may work later."""

    code = "no-resources"


class OutcomeUnknown(BalsamError):
    """The connection broke while a write was in flight: it may or may not have been applied."""

    code = "outcome-unknown"
    exit_code = 7


class PartlyDone(BalsamError):
    """A change failed after some of its steps, which stay, or only its answer can't be printed; the message says so."""

    code = "partly-done"
    exit_code = 7


class DBDirError(BalsamError):
    """The path is no usable DB directory: missing, foreign, a file, not writable."""

    code = "db-dir"
    exit_code = 8


class Corrupt(DBDirError):
    """The database files are damaged or belong to another program."""

    code = "corrupt"


class SchemaMismatch(BalsamError):
    """Program and database speak different versions."""

    code = "schema-mismatch"
    exit_code = 9


class JobsFailed(BalsamError):
    """The command worked, but some of the jobs it waited for did not finish well."""

    code = "jobs-failed"
    exit_code = 10


class TimedOut(BalsamError):
    """The time that the caller allowed is over; what was waited for goes on."""

    code = "timed-out"
    exit_code = 11


class BackendError(BalsamError):
    """A plugin is missing, broken, doubled, lacks its driver, or its database refuses Balsam's statements."""

    code = "backend"
    exit_code = 12


class SettingsError(BalsamError):
    """The user's settings file can't be read or holds a wrong value."""

    code = "settings"
    exit_code = 13


def error_class(code: str) -> type[BalsamError]:
    """Return the class of an error code, :class:`BalsamError` for an unknown one."""
    return _BY_CODE.get(code, BalsamError)
