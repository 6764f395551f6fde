"""The URL of a server that somebody else runs: ``postgresql://USER@HOST:PORT/DATABASE?sslmode=verify-full``."""

from __future__ import annotations

import os

import psycopg

from balsam_core.plugin import InvalidInput

_FORM = "postgresql://USER@HOST:PORT/DATABASE"
_NEEDED = ("user", "host", "dbname")
_WRITABLE = ("read-write", "primary")
_FILES = ("sslcert", "sslkey", "sslrootcert", "sslcrl", "sslcrldir", "passfile")
_ALLOWED = {
    *_NEEDED,
    *_FILES,
    *("hostaddr", "port", "options", "connect_timeout", "target_session_attrs", "load_balance_hosts"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"),
    *("sslmode", "sslnegotiation", "sslcertmode", "sslsni", "channel_binding", "require_auth"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    *("gssencmode", "krbsrvname", "gsslib", "gssdelegation"),
}


def check_url(url: str) -> None:
    """Refuse a URL that libpq or we don't understand, or that holds a secret.

    Raises:
        InvalidInput: It is wrong.
    """
    if not url.startswith(("postgresql://", "postgres://")):
        raise InvalidInput(f"the URL of a PostgreSQL server has the form {_FORM}")
    try:
        parts = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError as err:
        # Its text may quote the URL, which may hold a password by mistake.
        what = "invalid URI query parameter" if "query parameter" in str(err) else "it is not well formed"
        raise InvalidInput(f"the URL can't be understood ({what}); its form is {_FORM}?sslmode=verify-full") from None
    if {"password", "sslpassword"} & parts.keys():
        raise InvalidInput("a password must not stand in the URL: use --password-file, or BALSAM_DB_PASSWORD")
    for name in _NEEDED:
        if not parts.get(name):
            raise InvalidInput(f"the URL doesn't name the {'database' if name == 'dbname' else name}: {_FORM}")
    if (attributes := parts.get("target_session_attrs", _WRITABLE[0])) not in _WRITABLE:
        raise InvalidInput(
            f"the URL's target_session_attrs={attributes!s:.40} permits a standby, which takes no writes: leave it out"
        )
    for name in sorted(parts.keys() - _ALLOWED):
        raise InvalidInput(f"the URL has the parameter {name}, which Balsam can't use: leave it out")
    for name in _FILES:
        path = str(parts.get(name, ""))
        if path not in {"", "system"} and not os.path.isabs(path):  # noqa: PTH117  (not a path yet)
            raise InvalidInput(f"the URL's {name} is {path!a}: write the path in full")
