"""The URL of a server that somebody else runs: ``mysql://USER@HOST:PORT/DATABASE?ssl_ca=FILE``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from balsam_core.plugin import InvalidInput, shown

_FORM = "mysql://USER@HOST:PORT/DATABASE"
_SCHEMES = {f"{name}{driver}" for name in ("mysql", "mariadb") for driver in ("", "+mysqldb")}
_TLS_FILES = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key")
_OPTIONS = (*_TLS_FILES, "ssl_cipher", "ssl_mode", "unix_socket")
_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
_PORT = 3306
_ARGUMENTS = {"host": "host", "port": "port", "socket": "unix_socket"}  # of a client program: the driver's parameter


@dataclass(frozen=True, kw_only=True)
class Target:
    """A database of a server that somebody else runs.

    Attributes:
        user: The account.
        host: The server.
        port: Its port.
        database: The database.
        options: The part behind ``?``.
    """

    user: str
    host: str
    port: int
    database: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read a URL.

        Raises:
            InvalidInput: It is wrong or incomplete.
        """
        try:
            parts = urlsplit(url)
            port = parts.port or _PORT
            pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as err:
            raise InvalidInput(f"the URL can't be read ({err}); it must be like {_FORM}") from None
        database = unquote(parts.path.lstrip("/"))
        user = unquote(parts.username or "")
        if parts.scheme not in _SCHEMES or not user or not database or "/" in database or parts.fragment:
            raise InvalidInput(f"the URL names no user or no database; it must be like {_FORM}")
        if parts.password is not None:
            raise InvalidInput("the URL holds a password: leave it out, and give it by --password-file")
        options = dict(pairs)
        if len(options) != len(pairs):
            raise InvalidInput("the URL says something twice behind its question mark")
        _check_options(options)
        host = parts.hostname or "localhost"
        return cls(user=user, host=host, port=port, database=database, options=options)

    @property
    def endpoint(self) -> str:
        """Where the server is, for messages."""
        return self.options.get("unix_socket") or f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether it is reached without a network."""
        return "unix_socket" in self.options

    @property
    def is_verified(self) -> bool:
        """Whether the server must prove its identity before it gets the password."""
        return "VERIFY" in self.parameters().get("ssl_mode", "")

    def parameters(self) -> dict[str, Any]:
        """Return the driver's parameters, but for the password."""
        files = {name.removeprefix("ssl_"): self.options[name] for name in _TLS_FILES if name in self.options}
        if "ssl_cipher" in self.options:
            files["cipher"] = self.options["ssl_cipher"]
        found: dict[str, Any] = {"user": self.user, "database": self.database}
        if self.is_local:
            found["unix_socket"] = self.options["unix_socket"]
        else:
            # For the driver the name "localhost" means the machine's own socket, whatever the port.
            found["host"] = "127.0.0.1" if self.host == "localhost" else self.host
            found["port"] = self.port
        if files:
            found["ssl"] = files
        mode = self.options.get("ssl_mode", "")
        if mode in {"", "REQUIRED"} and ("ca" in files or "capath" in files):
            # MariaDB's client library goes on without TLS unless it is told to verify.
            mode = "VERIFY_CA"
        if mode:
            found["ssl_mode"] = mode
        return found

    def arguments(self, variant: str) -> list[str]:
        """Return the same for the client programs of MariaDB or MySQL."""
        found = self.parameters()
        arguments = [f"--user={self.user}"]
        arguments += [f"--{name}={found[key]}" for name, key in _ARGUMENTS.items() if key in found]
        arguments += [f"--ssl-{name}={value}" for name, value in found.get("ssl", {}).items()]
        mode = found.get("ssl_mode", "")
        if variant == "mysql":
            return [*arguments, *([f"--ssl-mode={mode}"] if mode else [])]
        if mode == "DISABLED":
            return [*arguments, "--skip-ssl"]
        return [*arguments, *(["--ssl"] if mode else []), *(["--ssl-verify-server-cert"] if "VERIFY" in mode else [])]


def _check_options(options: dict[str, str]) -> None:
    for name, value in options.items():
        if name not in _OPTIONS:
            raise InvalidInput(f"the URL's option {name!a} is unknown; known are {', '.join(_OPTIONS)}")
        if name in {*_TLS_FILES, "unix_socket"}:
            if not os.path.isabs(value):  # noqa: PTH117  (a text)
                raise InvalidInput(f"the URL's {name} must be a full path, not {value!a}: others will use it, too")
            if name in _TLS_FILES and not os.access(value, os.R_OK):
                raise InvalidInput(f"the URL's {name}, {shown(value)}, can't be read: check the path")
    if options.get("ssl_mode", _MODES[0]) not in _MODES:
        raise InvalidInput(f"the URL's ssl_mode must be one of {', '.join(_MODES)}")
    if options.get("ssl_mode") == "REQUIRED" and not {"ssl_ca", "ssl_capath"} & options.keys():
        raise InvalidInput(
            "the URL's ssl_mode=REQUIRED doesn't keep the password from a false server: add ssl_ca=FILE, with the "
            "certificate of the authority"
        )
