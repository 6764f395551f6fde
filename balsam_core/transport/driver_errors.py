"""Drivers' errors, mapped to the error tree: the one place where that happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from balsam_core.errors import BalsamError, Busy, Conflict, OutcomeUnknown, SchemaMismatch, Unavailable
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from collections.abc import Callable

    IsRetryable: TypeAlias = Callable[[BaseException], bool]
    Translate: TypeAlias = Callable[[BaseException], BalsamError | None]


def to_balsam_error(err: BaseException, is_retryable: IsRetryable, translate: Translate | None) -> BalsamError:
    """Return SQLAlchemy's error as one of ours; the functions are those of a ``NativeTransport``.

    Three of them may not come again when the transaction is repeated: Busy, OutcomeUnknown (the connection broke) and
    Conflict (two inserted the same key at once).
    """
    from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError, ProgrammingError

    text = driver_text(err)
    if isinstance(err, OSError):
        return Unavailable(f"this program can't connect to the database: {reason(err)}")
    if not isinstance(err, DBAPIError) or err.orig is None:
        return Unavailable(f"the database did not do what it was asked ({text})")
    # First: the server may have committed, though its answer to the COMMIT was an error and the end of the connection.
    if err.connection_invalidated:
        return OutcomeUnknown(f"the connection broke ({text})")
    if is_retryable(err.orig):
        return Busy(f"the database was kept busy by others until the time was over ({text})")
    if translate and (ours := translate(err.orig)) is not None:
        return ours
    error: BalsamError = Unavailable(f"the database reported an error ({text})")
    if isinstance(err, IntegrityError):
        error = Conflict(f"the database refused the write ({text})")
    elif isinstance(err, (OperationalError, ProgrammingError)) and "schema_version" in text:
        error = SchemaMismatch(f"the database has no tables ({text}); run: balsam init PATH")
    return error


def driver_text(err: BaseException) -> str:
    """Return the driver's message on one line."""
    return " ".join(str(getattr(err, "orig", None) or err).split())
