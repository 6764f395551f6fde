"""The URL of a server that somebody else runs: ``mysql://USER@HOST:PORT/DATABASE?ssl_ca=FILE``.

It may name several servers that replicate each other, as PostgreSQL's URLs do: ``mysql://USER@HOST:PORT,HOST:PORT/...``.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from balsam_core.plugin import InvalidInput, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORM = "mysql://USER@HOST:PORT/DATABASE"
_SCHEMES = {f"{name}{driver}" for name in ("mysql", "mariadb") for driver in ("", "+mysqldb")}
_TLS_FILES = ("ssl_ca", "ssl_capath", "ssl_cert", "ssl_key")
_OPTIONS = (*_TLS_FILES, "ssl_cipher", "ssl_mode", "unix_socket")
_MODES = ("DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
_PORT = 3306
_LARGEST_PORT = 65535
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^\[\]:]*))(?::(\d*))?")  # an IPv6 address has brackets
_ARGUMENTS = {"host": "host", "port": "port", "socket": "unix_socket"}  # of a client program: the driver's parameter


@dataclass(frozen=True, kw_only=True)
class Target:
    """A database of a server that somebody else runs.

    Attributes:
        user: The account.
        hosts: The servers with their ports, in the order in which they are tried.
        database: The database.
        options: The part behind ``?``.
    """

    user: str
    hosts: tuple[tuple[str, int], ...]
    database: str
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str) -> Target:
        """Read a URL.

        Raises:
            InvalidInput: It is wrong or incomplete.
        """
        try:
            scheme, colon, rest = url.partition("://")
            authority = re.split("[/?#]", rest, maxsplit=1)[0]
            hosts = authority.rpartition("@")[2]
            parts = urlsplit(f"{scheme}{colon}{authority.removesuffix(hosts)}{rest.removeprefix(authority)}")
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
        return cls(user=user, hosts=_read_hosts(hosts), database=database, options=options)

    @property
    def endpoint(self) -> str:
        """Where the server is, for messages."""
        places = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return self.options.get("unix_socket") or " or ".join(places)

    def each(self) -> Iterator[Target]:
        """Give the same database on each of the servers alone."""
        for one in self.hosts:
            yield replace(self, hosts=(one,))

    @property
    def is_local(self) -> bool:
        """Whether it is reached without a network."""
        return "unix_socket" in self.options

    @property
    def is_verified(self) -> bool:
        """Whether the server must prove its identity before it gets the password."""
        return "VERIFY" in self.parameters().get("ssl_mode", "")

    def parameters(self) -> dict[str, Any]:
        """Return the driver's parameters for the first server, but for the password."""
        files = {name.removeprefix("ssl_"): self.options[name] for name in _TLS_FILES if name in self.options}
        if "ssl_cipher" in self.options:
            files["cipher"] = self.options["ssl_cipher"]
        found: dict[str, Any] = {"user": self.user, "database": self.database}
        if self.is_local:
            found["unix_socket"] = self.options["unix_socket"]
        else:
            host, found["port"] = self.hosts[0]
            found["host"] = tcp_host(host)
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


def tcp_host(host: str) -> str:
    """Return a host for the driver, which takes the name ``localhost`` for the machine's own socket, not for TCP."""
    return "127.0.0.1" if host.lower() == "localhost" else host


def _read_hosts(text: str) -> tuple[tuple[str, int], ...]:
    """Return the hosts and ports of a URL; without any it means this machine."""
    found = []
    for part in text.split(",") if text else ["localhost"]:
        match = _HOST.fullmatch(part)
        host = match and unquote(match[1] or match[2]).lower()
        port = int((match and match[3]) or _PORT)
        if not host or not 0 < port <= _LARGEST_PORT:
            raise InvalidInput(
                f"the URL's host {part!a} can't be read; it must be like HOST, HOST:PORT or [IPV6]:PORT, and several "
                f"are separated by commas"
            )
        found.append((host, port))
    return tuple(found)


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
