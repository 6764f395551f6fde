"""A server for this process alone: never published, on the loopback, gone when the block ends or the process dies."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from balsam_core.dbdir.address import override
from balsam_core.errors import Unavailable
from balsam_core.system import network
from balsam_core.watchdog.server_process import READY_POLL, ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir

ATTEMPTS = 3  # a port that was free may be taken by the time that the server wants it
READY_TIMEOUT = 1.0  # seconds that a probe may take


@contextlib.contextmanager
def private_server(db: DBDir, backend: Backend) -> Iterator[Address]:
    """Run the server of a DB directory, which must have no other, and give its address.

    Inside the block this process finds it as if it were published; other processes don't. The directory may still be
    in the making.

    Raises:
        BalsamError: The server does not start.
        OSError: The same.
    """
    server = _start_server(db, backend)
    finished = threading.Event()
    # Its output is read all the time: a server that has filled a pipe would wait.
    reader = threading.Thread(target=_keep_reading, args=(server, finished), daemon=True)
    reader.start()
    try:
        published = server.address()
        with override(db, published):
            yield published
    finally:
        finished.set()
        reader.join()
        server.stop()


def _start_server(db: DBDir, backend: Backend) -> ServerProcess:
    """Return a server that is ready."""
    for _ in range(ATTEMPTS):
        port = network.choose_port(network.LOOPBACK)
        server = ServerProcess(db, backend.start_server(db, network.LOOPBACK, port, tls=True))
        try:
            while not server.ended():
                if server.check_ready(READY_TIMEOUT):
                    return server
                server.wait(READY_POLL)
        except BaseException:
            server.stop()
            raise
    raise Unavailable(server.describe_failure(server.describe_end()))


def _keep_reading(server: ServerProcess, finished: threading.Event) -> None:
    while not finished.wait(READY_POLL):
        server.read_output()
