"""What the user wants of a server."""

from __future__ import annotations

from dataclasses import dataclass

from balsam_core.system import network


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """What the user wants of a server.

    Attributes:
        host: What it listens on.
        port: Its port; 0 for any that is free.
        preferred_port: With ``port`` 0, the port to take if it is free.
        takeover: Whether the lease of a dead machine may be taken where that could destroy data.
        tls: Whether connections from other hosts must be encrypted.
    """

    host: str = network.LOOPBACK
    port: int = 0
    preferred_port: int = 0
    takeover: bool = False
    tls: bool = True
