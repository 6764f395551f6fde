"""Ports of this machine, and the address at which others reach it."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import platform
import socket
from itertools import chain
from typing import TYPE_CHECKING

from balsam_core.errors import Conflict, InvalidInput
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from collections.abc import Iterator

LOOPBACK = "127.0.0.1"
_LOOPBACK_NAMES = {
    **dict.fromkeys(("localhost", "localhost.localdomain", "localhost4"), LOOPBACK),
    **dict.fromkeys(("localhost6", "ip6-localhost", "ip6-loopback"), "::1"),
}
# Reserved for documentation. They tell the outgoing interface; nothing is sent.
_REMOTE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def listening_host(host: str) -> str:
    """Return a host to listen on in the one form that is published.

    An IPv6 address loses its brackets, and a name of the loopback (RFC 6761) becomes its address: a driver may take
    ``localhost`` for a socket file.
    """
    bare = host.strip().removeprefix("[").removesuffix("]")
    found = _ip_address(bare)
    return str(found) if found else _LOOPBACK_NAMES.get(bare.lower().removesuffix("."), bare)


def choose_port(host: str, *, fixed: int = 0, preferred: int = 0) -> int:
    """Return a port that a server can listen on now; another program may take it before the server does.

    Args:
        host: Name or address to listen on.
        fixed: The only port that will do; 0 for any.
        preferred: The port to take if it is free; 0 for none.

    Raises:
        Conflict: The fixed port is taken.
        InvalidInput: The host is not this machine's or is unreachable for others, or the port is not allowed.
    """
    _refuse_unreachable_name(host)
    for port in [fixed] if fixed else [preferred, 0] if preferred else [0]:
        try:
            return _bind_and_close(host, port)
        except (OSError, UnicodeError) as err:
            code = err.errno if isinstance(err, OSError) else None
            if code == errno.EADDRINUSE:
                continue
            if code == errno.EACCES:
                raise InvalidInput(f"the port {port} is reserved by the system: choose one from 1024 up") from None
            why = reason(err) if isinstance(err, OSError) else "no host name"
            raise InvalidInput(
                f"no server can listen on {host!a}: {why}; name an address of this machine with --host"
            ) from None
    raise Conflict(
        f"the port {fixed} of {host} is taken by another program: choose another with --port, or leave it out"
    )


def _refuse_unreachable_name(host: str) -> None:
    """Raise InvalidInput for a name that means the loopback, as the machine's own does after Debian's installer."""
    with contextlib.suppress(OSError, UnicodeError):
        if host.lower().split(".")[0] != "localhost" and not _ip_address(host) and not is_wildcard(host):
            found = {str(info[4][0]) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
            if found and not any(map(_is_reachable, found)):
                raise InvalidInput(
                    f"{host} means {', '.join(sorted(found))} on this machine, which no other can reach: use "
                    f"--host 0.0.0.0, or an address of this machine"
                )


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def is_wildcard(host: str) -> bool:
    """Say whether a host to listen on means all addresses of this machine."""
    found = _ip_address(host)
    return found.is_unspecified if found else host in {"", "*"}


def local_host(host: str) -> str:
    """Return where this machine reaches a server that listens on a host: for a wildcard, the loopback."""
    if not is_wildcard(host):
        return host
    return "::1" if ":" in host else LOOPBACK


def advertised(host: str) -> str:
    """Return the host by which other machines reach a server that listens on a host.

    A wildcard becomes an address: that of the machine's name, which a site chose with care where there are several,
    else that of the default route, else any. Not the name itself, which often only this machine can resolve.
    """
    if not is_wildcard(host):
        return host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = chain(_addresses_of_name(family), _address_of_default_route(family), _addresses_of_interfaces(family))
    return next(found, LOOPBACK)


def _addresses_of_name(family: socket.AddressFamily) -> Iterator[str]:
    with contextlib.suppress(OSError, UnicodeError):
        infos = socket.getaddrinfo(platform.node(), None, family, socket.SOCK_STREAM)
        # Debian's installer maps the name to 127.0.1.1: other machines would connect to themselves.
        yield from filter(_is_reachable, [str(info[4][0]) for info in infos])


def _address_of_default_route(family: socket.AddressFamily) -> Iterator[str]:
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((_REMOTE[family], 9))
        yield from filter(_is_reachable, [str(probe.getsockname()[0])])


def _addresses_of_interfaces(family: socket.AddressFamily) -> Iterator[str]:
    import psutil

    for addresses in psutil.net_if_addrs().values():
        yield from filter(_is_reachable, [one.address for one in addresses if one.family == family])


def _is_reachable(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    return not (found.is_loopback or found.is_link_local or found.is_unspecified)


def _bind_and_close(host: str, port: int) -> int:
    """Bind for a moment and return the port."""
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, endpoint = infos[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: closed connections in TIME_WAIT don't count as a taken port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(endpoint)
        return int(probe.getsockname()[1])
