"""What PostgreSQL's error codes mean: https://www.postgresql.org/docs/current/errcodes-appendix.html.

Every command loads this module, so psycopg is not imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import BackendError, Corrupt, InvalidInput, Unavailable

if TYPE_CHECKING:
    from balsam_core.plugin import BalsamError

_RETRYABLE = {
    "40001",  # serialization failure
    "40P01",  # deadlock
    "55P03",  # lock timeout
    "53300",  # too many connections
}
_LOST = {
    "57P01",  # admin shutdown
    "57P02",  # crash shutdown
    "57P03",  # cannot connect now
    "57P05",  # idle session timeout
    "25P03",  # idle in transaction timeout
    "25006",  # read-only transaction: the server has become a standby, or a pooler has changed to one
    "26000",  # a prepared statement is gone: a new connection prepares it again
    "42P05",  # the same, of another program behind a pooler
}
_UNSUPPORTED = "0A000"
# Functions of the server: a standby, and a table that was changed after a statement was prepared.
_IN_RECOVERY = {"check_XactReadOnly", "check_transaction_read_only", "call_bool_check_hook"}
_STALE_PLAN = "RevalidateCachedQuery"

_NO_RIGHT = "42501"
_DAMAGE = {"XX001", "XX002", "58P01"}
_TROUBLE = {
    "53100": ("the server's disk is full", "nothing was written; make room and repeat"),
    "53200": ("the server is out of memory", "nothing was written; repeat later"),
    "25006": ("the server allows no writing", "name the primary server, or a user that may write"),
    "58030": ("the server's disk reports an error", "check it and repeat"),
}

# Words of libpq, which wants a server that can be written to.
_NOT_WRITABLE = ("session is read-only", "server is in hot standby mode", "could not find a suitable server")
_NAME_PRIMARY = "name the primary server in the URL, or all servers of the cluster"
_ASK_OPERATOR = "ask whoever runs it"
_GIVE_ANEW = "give it with balsam init PATH --password-file FILE"
_CHECK_SERVER = "check the URL, or whether this is the right server"
_DAMAGED_FILES = "its files are damaged: restore the DB from a backup"
_REFUSED_LOGIN = f"it doesn't let this host, user or database in: {_ASK_OPERATOR}, or check the URL"
# The codes of servers that refuse a connection, and what they mean, for texts in other languages than English.
_REFUSALS = {
    "28P01": f"the password is wrong: {_GIVE_ANEW}",
    "28000": _REFUSED_LOGIN,
    "3D000": "there is no such database",
    "42501": _REFUSED_LOGIN,
}
_MISUNDERSTOOD = ("08P01", "0A", "22", "42", "58", "XX")  # beginnings of codes that no repetition mends
# Words of a server or libpq that refuses a connection, and what they mean.
_PERMANENT = {
    "password authentication failed": (
        f"the password is wrong: restore keys/ from a backup; for a server that somebody else runs, {_GIVE_ANEW}"
    ),
    "no password supplied": f"a password is needed: set BALSAM_DB_PASSWORD, or {_GIVE_ANEW}",
    "authentication method requirement": f"it asks for the password in a way that would reveal it: {_CHECK_SERVER}",
    "no pg_hba.conf entry": f"it doesn't let this host, user or database in: {_ASK_OPERATOR}",
    "pg_hba.conf rejects": f"it doesn't let this host, user or database in: {_ASK_OPERATOR}",
    "authentication failed": "it doesn't accept the user: check the URL and the password",
    "certificate verify failed": f"its certificate is not the expected one: check sslrootcert, {_CHECK_SERVER}",
    "does not match host name": f"its certificate is for another host: {_CHECK_SERVER}",
    "server does not support ssl": f"it doesn't encrypt, as it must: {_CHECK_SERVER}",
    "root certificate file": "the certificate to check it by can't be read",
    "root certificates": "the certificates to check it by can't be read",
    "certificate file": "the client's certificate can't be read",
    "private key file": "the client's key can't be read",
    "catalog is missing": _DAMAGED_FILES,
    "cache lookup failed": _DAMAGED_FILES,
    "could not read block": _DAMAGED_FILES,
    "invalid page": _DAMAGED_FILES,
    "unsupported startup parameter": "a pooler in between refuses what Balsam sets: connect to the server itself",
}
_ABSENT = (("role", "there is no such user"), ("database", "there is no such database"))


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated."""
    return _sqlstate(error) in _RETRYABLE


def is_lost(error: BaseException) -> bool:
    """Say whether the connection is of no more use, which the driver may not know yet.

    A PANIC may come from within COMMIT, e.g. when the disk fails; then its code, which names the cause, says nothing
    about the connection.
    """
    state = _sqlstate(error)
    diagnosis = getattr(error, "diag", None)
    return (
        state in _LOST
        or state.startswith("08")
        or getattr(diagnosis, "severity_nonlocalized", None) in {"FATAL", "PANIC"}
        or getattr(diagnosis, "source_function", None) == _STALE_PLAN
        or _is_in_recovery(error)
    )


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of the server's, None where its own text is best."""
    text = " ".join(str(error).split())
    state = _sqlstate(error)
    if _is_in_recovery(error) or any(words in text for words in _NOT_WRITABLE):
        return Unavailable(f"the server is a standby, or allows no writing ({text}): {_NAME_PRIMARY}")
    if state.startswith("22"):
        return InvalidInput(f"the database can't hold a value ({text})")
    if state in _DAMAGE:
        return Corrupt(f"the database's files are damaged ({text}): restore the DB from a backup")
    if state == _NO_RIGHT:
        return BackendError(f"the database's user may not do that ({text}): it needs all rights on Balsam's tables")
    if state in _TROUBLE:
        what, remedy = _TROUBLE[state]
        return Unavailable(f"{what} ({text}): {remedy}")
    return None


def permanent_error(error: BaseException, where: str, code: str = "") -> BalsamError | None:
    """Return the error for a connection that can't succeed by repeating, else None.

    Args:
        error: libpq's, which has only a text.
        where: The server.
        code: The server's SQLSTATE, empty where it is unknown.
    """
    text = " ".join(str(error).split())
    lower = text.lower()
    meanings = [meaning for words, meaning in _PERMANENT.items() if words in lower]
    if "does not exist" in lower:
        meanings += [meaning for word, meaning in _ABSENT if f'{word} "' in lower]
    if code in _REFUSALS:
        meanings.append(_REFUSALS[code])
    elif code.startswith(_MISUNDERSTOOD):
        meanings.append(f"it refuses what it is told (code {code}): check the URL, or {_ASK_OPERATOR}")
    return Unavailable(f"{where} can't be used: {meanings[0]} ({text})") if meanings else None


def _is_in_recovery(error: BaseException) -> bool:
    """Say whether a standby has refused a transaction that may write."""
    function = getattr(getattr(error, "diag", None), "source_function", None)
    return _sqlstate(error) == _UNSUPPORTED and function in _IN_RECOVERY


def _sqlstate(error: BaseException) -> str:
    """Return PostgreSQL's code, empty where there is none."""
    return getattr(error, "sqlstate", None) or ""
