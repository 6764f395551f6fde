"""What MySQL's and MariaDB's error numbers mean.

The lists: https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html and
https://mariadb.com/kb/en/mariadb-error-code-reference/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balsam_core.plugin import BackendError, BalsamError, Corrupt, InvalidInput, Unavailable, shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_RETRYABLE = {
    1020,  # the row has changed since the snapshot
    1205,  # waited too long for a lock; the server rolls back only the statement, the transport the rest
    1213,  # deadlock
    1412,  # a table was changed since the snapshot
    3572,  # a lock is held and the statement asked not to wait
}
_LOST = {
    # The server ends, or has ended the session.
    1053, 1317, 1927, 3169, 4031,
    # The network.
    1152, 1158, 1159, 1160, 1161, 1184, 2006, 2013, 2055,
    # The same under TLS; while connecting, a certificate.
    2026,
    # A COMMIT that failed half-way, e.g. on a full disk, may later turn out to be committed.
    1180,
}  # fmt: skip
NO_VARIABLE = 1193
NOT_READY = 1047  # of a node of a Galera cluster
READ_ONLY = 1836
_NO_WRITER = -1  # our own: none of several servers takes writes, and some say why
_READ_ONLY_OPTION = 1290  # or another option, which the text names
_NO_SPACE = {1021, 1114}
_STORAGE_ENGINE_ERROR = 1030  # its text holds the storage engine's own error
_NO_TABLESPACE = 1812
_MEANINGS: tuple[tuple[set[int], type[BalsamError], str, str], ...] = (
    (
        {126, 127, 144, 145, 1033, 1034, 1035, 1194, 1195, 1712, 1812, 1877, 1932},
        Corrupt,
        "the database server's files are damaged",
        ": restore them from a backup",
    ),
    (
        {NOT_READY},
        Unavailable,
        "the database server is a Galera node that is not ready: it has lost its quorum, or is still joining",
        ": ask who runs it",
    ),
    ({_NO_WRITER}, Unavailable, "none of the URL's database servers takes writes now", ": ask who runs them"),
    (
        {1036, _READ_ONLY_OPTION, 1792, READ_ONLY, 3100},
        Unavailable,
        "the database server takes no writes, as a replica does",
        ": name the primary server, or ask who runs it",
    ),
    (
        {1044, 1142, 1143, 1227, 1370},
        BackendError,
        "the database account lacks a right",
        ": it needs all on its database",
    ),
    (
        # No such column or function, the syntax, and what this server can't do; the driver calls them operational.
        {1054, 1064, 1128, 1149, 1235, 1305},
        BackendError,
        "the database refuses a statement of Balsam's",
        ": its tables were changed, or this server doesn't fit; repeating won't help",
    ),
    ({1153, 1301}, InvalidInput, "a value is larger than the database server's max_allowed_packet", ""),
    ({1264, 1366, 1406, 1690}, InvalidInput, "the database can't hold a value", ""),
)

_NO_SUCH_DATABASE = {1044, 1049}
_CHECK_LOGIN = ": check the user and the password"
_REFUSALS = (
    ({1045, 1251, 1698, 1862, 3118, 4151}, "the database server at {where} refused {user}", _CHECK_LOGIN),
    ({1129, 1130}, "the database server at {where} takes no connections from this host", ""),
    ({2061, 3159}, "the database server at {where} wants TLS", ": add ssl_ca=FILE to the URL"),
    ({1524, 2058, 2059}, "the database server at {where} wants a way of login that the driver doesn't know", ""),
)
_TLS = 2026
_DISTRUST = ("certificate", "hostname", "no such file", "support")  # words of the driver


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated."""
    return _number(error) in _RETRYABLE


def is_lost(error: BaseException) -> bool:
    """Say whether the connection is of no more use, and it is unknown whether what was sent last was done."""
    return _number(error) in _LOST or _takes_no_writes(error)


def most_telling(faults: Sequence[tuple[str, Exception]]) -> Exception:
    """Return one error for several servers, each with its place."""
    last = faults[-1][1]
    if len(faults) == 1:
        return last
    texts = "; ".join(f"{where}: {_message(err)}" for where, err in faults)
    number = _NO_WRITER if any(_takes_no_writes(err) for _, err in faults) else _number(last)
    return type(last)(number, texts)


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of the server's, None where its own text is best."""
    number, text = _number(error), _message(error)
    if number in _NO_SPACE or "No space left on device" in text or "errno: 28" in text:
        return Unavailable(f"the database server's disk is full ({text}): make room and repeat")
    if number == _STORAGE_ENGINE_ERROR and "Tablespace is missing" in text:
        number = _NO_TABLESPACE
    for numbers, kind, before, after in _MEANINGS:
        if number in numbers:
            return kind(f"{before} ({text}){after}")
    return None


def permanent_error(
    error: BaseException, parameters: Mapping[str, Any], own_password: Path | None = None
) -> BalsamError | None:
    """Return the error for a connection that can't succeed by repeating, else None.

    ``own_password`` is the password file of a server that Balsam runs: nobody else has set that password.
    """
    number, text = _number(error), _message(error)
    user, where = parameters.get("user"), parameters.get("host") or parameters.get("unix_socket")
    if number in _NO_SUCH_DATABASE:
        return Unavailable(
            f"the database {parameters.get('database')} of {where} can't be used by {user} ({text}): it must exist, "
            f"and the account needs all rights on it"
        )
    for numbers, what, remedy in _REFUSALS:
        if number in numbers:
            if own_password and remedy == _CHECK_LOGIN:
                remedy = f": {shown(own_password)} holds another server's password: restore keys/"  # noqa: PLW2901
            return Unavailable(f"{what.format(user=user, where=where)} ({text}){remedy}")
    # Other TLS errors, e.g. an end in the middle of a record, mean that the server has gone away.
    if number == _TLS and any(word in text.lower() for word in _DISTRUST):
        return Unavailable(
            f"the database server at {where} isn't the one that is trusted ({text}): another one may have taken its "
            f"place, or the certificate has changed"
        )
    return None


def _takes_no_writes(error: BaseException) -> bool:
    """Say whether a server, or a node of a cluster, has a role now in which it takes no writes; another one may."""
    number = _number(error)
    return number in {NOT_READY, READ_ONLY, _NO_WRITER} or (
        number == _READ_ONLY_OPTION and "read-only" in _message(error)
    )


def _number(error: BaseException) -> int | None:
    number = error.args[0] if error.args else None
    return number if isinstance(number, int) else None


def _message(error: BaseException) -> str:
    """Return the driver's message on one line."""
    return " ".join(str(error.args[1] if len(error.args) > 1 else error).split())
