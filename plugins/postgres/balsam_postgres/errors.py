"""What PostgreSQL's error codes mean: https://www.postgresql.org/docs/current/errcodes-appendix.html.

The module is loaded by every command, and psycopg only when there is a connection.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.plugin import Corrupt, InvalidInput, Unavailable

if TYPE_CHECKING:
    from balsam_core.plugin import BalsamError

__all__ = ["DURABLE", "hopeless", "is_lost", "is_retryable", "translate"]

DURABLE = {
    "fsync": "a power cut may destroy the database",
    "full_page_writes": "a power cut may destroy the database",
    "synchronous_commit": "a power cut may undo writes that were acknowledged",
}
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
}

_DAMAGED = {"XX001", "XX002", "58P01"}
_TROUBLE = {
    "53100": ("the server's disk is full", "nothing was written; make room and repeat"),
    "53200": ("the server is out of memory", "nothing was written; repeat later"),
    "25006": ("the server allows no writing", "connect to the primary server, as a user that may write"),
    "42501": ("the database's user may not do that", "ask whoever runs the server"),
    "58030": ("the server's disk reports an error", "check it and repeat"),
}

_ASK = "ask whoever runs it"
_ANEW = "give it with balsam init PATH --password-file FILE"
_CHECK = "check the URL, or whether this is the right server"
_BROKEN = "its files are damaged: restore the DB from a backup"
# What a server or libpq says when it refuses a connection, of which libpq passes on the text alone; what it means.
_HOPELESS = {
    "password authentication failed": (
        f"the password is wrong: restore keys/ from a backup; for a server that somebody else runs, {_ANEW}"
    ),
    "no password supplied": f"a password is needed: set BALSAM_DB_PASSWORD, or {_ANEW}",
    "authentication method requirement": f"it asks for the password in a way that would reveal it: {_CHECK}",
    "no pg_hba.conf entry": f"it doesn't let this host, user or database in: {_ASK}",
    "pg_hba.conf rejects": f"it doesn't let this host, user or database in: {_ASK}",
    "authentication failed": "it doesn't accept the user: check the URL and the password",
    "certificate verify failed": f"its certificate is not the expected one: check sslrootcert, {_CHECK}",
    "does not match host name": f"its certificate is for another host: {_CHECK}",
    "server does not support ssl": f"it doesn't encrypt, as it must: {_CHECK}",
    "root certificate file": "the certificate to check it by can't be read",
    "root certificates": "the certificates to check it by can't be read",
    "certificate file": "the client's certificate can't be read",
    "private key file": "the client's key can't be read",
    "catalog is missing": _BROKEN,
    "cache lookup failed": _BROKEN,
    "could not read block": _BROKEN,
    "invalid page": _BROKEN,
    "unsupported startup parameter": "a pooler in between refuses what Balsam sets: connect to the server itself",
}
_ABSENT = (("role", "there is no such user"), ("database", "there is no such database"))


def is_retryable(error: BaseException) -> bool:
    """Say whether the same transaction may succeed when repeated."""
    return _state(error) in _RETRYABLE


def is_lost(error: BaseException) -> bool:
    """Say whether the server has ended this connection, which the driver may not know yet.

    A PANIC may come from within COMMIT, e.g. when the disk fails; what it says of the cause matters less then.
    """
    state = _state(error) or ""
    severity = getattr(getattr(error, "diag", None), "severity_nonlocalized", None)
    return state in _LOST or state.startswith("08") or severity in {"FATAL", "PANIC"}


def translate(error: BaseException) -> BalsamError | None:
    """Return Balsam's error for one of PostgreSQL's, None where its own text says it best."""
    text = " ".join(str(error).split())
    state = _state(error) or ""
    if state.startswith("22"):
        return InvalidInput(f"the database can't hold a value ({text})")
    if state in _DAMAGED:
        return Corrupt(f"the database's files are damaged ({text}): restore the DB from a backup")
    if state in _TROUBLE:
        what, remedy = _TROUBLE[state]
        return Unavailable(f"{what} ({text}): {remedy}")
    return None


def hopeless(error: BaseException) -> str | None:
    """Return what is wrong and what to do when a failed connection can never succeed by repeating, else None."""
    said = " ".join(str(error).split())
    low = said.lower()
    for words, meaning in _HOPELESS.items():
        if words in low:
            return f"{meaning} ({said})"
    if "does not exist" in low:
        for word, meaning in _ABSENT:
            if f'{word} "' in low:
                return f"{meaning} ({said})"
    return None


def _state(error: BaseException) -> str | None:
    """Return PostgreSQL's code; an error that wraps the driver's is looked into."""
    driver = getattr(error, "orig", None) or error
    return getattr(driver, "sqlstate", None)
