"""What MySQL's and MariaDB's error numbers mean.

The lists: https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html and
https://mariadb.com/kb/en/mariadb-error-code-reference/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balsam_core.plugin import BalsamError, Corrupt, InvalidInput, Unavailable, shown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["code_of", "hopeless", "is_broken", "is_retryable", "translate"]

_RETRYABLE = {
    1020,  # the row has changed since the snapshot
    1205,  # waited too long for a lock; only the statement was rolled back, the transport does it for the rest
    1213,  # deadlock
    1412,  # a table was changed since the snapshot
    3572,  # a lock is held and the statement didn't want to wait
}
_BROKEN = {
    # The server ends, or has ended the session.
    1053, 1317, 1927, 3169, 4031,
    # The network.
    1152, 1158, 1159, 1160, 1161, 1184, 2006, 2013, 2055,
    # The same under TLS; while connecting, a certificate.
    2026,
    # A COMMIT that failed half-way, e.g. on a full disk, may yet be found committed.
    1180,
}  # fmt: skip
_NO_SPACE = {1021, 1114}
_ENGINE = 1030  # what the storage engine says, in its own words
_NO_TABLESPACE = 1812
_MEANINGS: tuple[tuple[set[int], type[BalsamError], str, str], ...] = (
    (
        {126, 127, 144, 145, 1033, 1034, 1035, 1194, 1195, 1712, 1812, 1877, 1932},
        Corrupt,
        "the database server's files are damaged",
        ": restore them from a backup",
    ),
    ({1036, 1290, 1792, 1836, 3100}, Unavailable, "the database server takes no writes", ": ask who runs it"),
    (
        {1044, 1142, 1143, 1227, 1370},
        Unavailable,
        "the database account lacks a right",
        ": it needs all on its database",
    ),
    ({1153, 1301}, InvalidInput, "a value is larger than the database server's max_allowed_packet", ""),
    ({1264, 1366, 1406, 1690}, InvalidInput, "the database can't hold a value", ""),
)

_NO_SUCH_DATABASE = {1044, 1049}
_CHECK = ": check the user and the password"
_REFUSALS = (
    (
        {1045, 1251, 1698, 1862, 3118, 4151},
        "the database server at {where} refused {user}",
        _CHECK,
    ),
    ({1129, 1130}, "the database server at {where} takes no connections from this host", ""),
    ({2061, 3159}, "the database server at {where} wants TLS", ": add ssl_ca=FILE to the URL"),
    ({1524, 2058, 2059}, "the database server at {where} wants a way of login that the driver doesn't know", ""),
)
_TLS = 2026
_DISTRUST = ("certificate", "hostname", "no such file", "support")  # words of the driver


def code_of(error: BaseException) -> int | None:
    """Return the number of a driver's error; an error that wraps the driver's is looked into."""
    driver = getattr(error, "orig", None) or error
    number = driver.args[0] if driver.args else None
    return number if isinstance(number, int) else None


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated."""
    return code_of(error) in _RETRYABLE


def is_broken(error: BaseException) -> bool:
    """Say whether the connection is of no more use, and what was sent last may or may not have been done."""
    return code_of(error) in _BROKEN


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of the server's, None where its own text says it best."""
    code, text = code_of(error), _text(error)
    if code in _NO_SPACE or "No space left on device" in text or "errno: 28" in text:
        return Unavailable(f"the database server's disk is full ({text}): make room and repeat")
    if code == _ENGINE and "Tablespace is missing" in text:
        code = _NO_TABLESPACE
    for codes, kind, before, after in _MEANINGS:
        if code in codes:
            return kind(f"{before} ({text}){after}")
    return None


def hopeless(error: BaseException, settings: Mapping[str, Any], own: Path | None = None) -> BalsamError | None:
    """Return the error for a connection that will not be made however often it is tried, else None.

    Args:
        error: The driver's.
        settings: What was tried.
        own: The file with the password of a server of Balsam's own, which nobody else has set.
    """
    code, text = code_of(error), _text(error)
    user, where = settings.get("user"), settings.get("host") or settings.get("unix_socket")
    if code in _NO_SUCH_DATABASE:
        return Unavailable(
            f"the database {settings.get('database')} of {where} can't be used by {user} ({text}): it must exist, and "
            f"the account needs all rights on it"
        )
    for codes, what, usual in _REFUSALS:
        if code in codes:
            remedy = (
                f": {shown(own)} holds another server's password: restore keys/" if own and usual == _CHECK else usual
            )
            return Unavailable(f"{what.format(user=user, where=where)} ({text}){remedy}")
    # Where it ends in the middle, the server has gone away.
    if code == _TLS and any(word in text.lower() for word in _DISTRUST):
        return Unavailable(
            f"the database server at {where} isn't the one that is trusted ({text}): another one may have taken its "
            f"place, or the certificate has changed"
        )
    return None


def _text(error: BaseException) -> str:
    """Return the driver's message on one line."""
    driver = getattr(error, "orig", None) or error
    return " ".join(str(driver.args[1] if len(driver.args) > 1 else driver).split())
