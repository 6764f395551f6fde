"""Whether a write server answers: the readiness probe of the watchdog."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from balsam_core.errors import BalsamError
from balsam_core.system.network import local_host

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir

_POLL = 0.05  # seconds


class Probe:
    """Asks one server, each time over a new connection, since new clients must be able to connect.

    Args:
        db: The DB directory, for its keys.
        host: Where the server listens.
        port: Where the server listens.
    """

    def __init__(self, db: DBDir, host: str, port: int) -> None:
        self._db = db
        self._host = local_host(host)
        self._port = port

    def __call__(self, seconds: float) -> bool:
        """Return whether the server answers within the time."""
        import zmq

        from balsam_core.proxy.client.channel import Channel
        from balsam_core.proxy.keys import client_keys
        from balsam_core.proxy.protocol import StatusRequest

        until = time.monotonic() + seconds
        channel = None
        try:
            channel = Channel(self._host, self._port, client_keys(self._db))
            while not channel.greet(_POLL):
                if time.monotonic() > until:
                    return False
            number = channel.send(StatusRequest)
            return channel.receive(number, max(_POLL, until - time.monotonic())) is not None
        except (BalsamError, zmq.ZMQError):
            return False  # a server on its way up or down
        finally:
            if channel is not None:
                channel.close()
