"""Drivers' errors, mapped to the error tree: the one place where that happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from balsam_core.errors import BackendError, BalsamError, Busy, Conflict, OutcomeUnknown, SchemaMismatch, Unavailable
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from collections.abc import Callable

    IsRetryable: TypeAlias = Callable[[BaseException], bool]
    Translate: TypeAlias = Callable[[BaseException], BalsamError | None]


def to_balsam_error(err: BaseException, is_retryable: IsRetryable, translate: Translate | None) -> BalsamError:
    """Return SQLAlchemy's error as one of ours; the functions are those of a ``NativeTransport``.

    Three of them may not come again when the transaction is repeated: Busy, OutcomeUnknown (the connection broke) and
    Conflict (two inserted the same key at once). BackendError means that the database will refuse the statement again:
    a table, a column or a right is missing, or it doesn't know the syntax.
    """
    from sqlalchemy.exc import DBAPIError, IntegrityError, NotSupportedError, OperationalError, ProgrammingError

    text = driver_text(err)
    if isinstance(err, OSError):
        return Unavailable(f"this program can't connect to the database: {reason(err)}")
    if not isinstance(err, DBAPIError) or err.orig is None:
        return Unavailable(f"the database did not do what it was asked ({text})")
    # First: the server may have committed, though its answer to the COMMIT was an error and the end of the connection.
    if err.connection_invalidated:
        known = translate(err.orig) if translate else None
        return OutcomeUnknown(known.message if known else f"the connection broke ({text})")
    if is_retryable(err.orig):
        return Busy(f"the database was kept busy by others until the time was over ({text})")
    if translate and (ours := translate(err.orig)) is not None:
        return ours
    error: BalsamError = Unavailable(f"the database reported an error ({text})")
    if isinstance(err, IntegrityError):
        error = Conflict(f"the database refused the write ({text})")
    elif isinstance(err, (OperationalError, ProgrammingError)) and "schema_version" in text:
        error = SchemaMismatch(f"the database has no tables ({text}); run: balsam init PATH")
    elif isinstance(err, (ProgrammingError, NotSupportedError)):
        error = BackendError(
            f"the database refuses a statement of Balsam's ({text}): a table, a column or a right is missing, or its "
            f"backend doesn't fit it; repeating won't help"
        )
    return error


def blame_schema(
    error: BalsamError, look: Callable[[], None], explain: Callable[[BaseException], BalsamError]
) -> BalsamError:
    """Return why a statement was refused, where that is another schema or another database; else the error itself.

    Args:
        error: What :func:`to_balsam_error` made of the refusal.
        look: Looks at the database's schema and id; raises BalsamError, or the driver's error.
        explain: :func:`to_balsam_error` for an error of ``look``.
    """
    if not isinstance(error, BackendError):
        return error
    try:
        look()
    except (SchemaMismatch, Conflict) as err:
        return err
    except Exception as err:  # noqa: BLE001  (of a driver, too; the first error stands)
        if isinstance(found := explain(err), SchemaMismatch):
            return found
    return error


def driver_text(err: BaseException) -> str:
    """Return the driver's message on one line."""
    return " ".join(str(getattr(err, "orig", None) or err).split())
