"""A server for this process alone: never published, on the loopback, gone when the block ends or the process dies."""

from __future__ import annotations

import contextlib
import select
import threading
import time
from typing import TYPE_CHECKING

from balsam_core.dbdir.address import Address, instead
from balsam_core.errors import Unavailable
from balsam_core.system import network
from balsam_core.system.files import shown
from balsam_core.system.processes import this_machine
from balsam_core.watchdog.server_process import ServerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.backends.registry import Backend
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.plugin_types import ServerPlan

__all__ = ["private_server"]

ATTEMPTS = 3  # a port that was free may be taken by the time that the server wants it
POLL = 0.02  # seconds between two questions whether it is ready
PROBE = 1.0  # seconds that such a question may take


@contextlib.contextmanager
def private_server(db: DBDir, backend: Backend) -> Iterator[Address]:
    """Run the server of a DB directory, which must have no other, and give its address.

    Inside the block this process finds it as if it were published; other processes don't.

    Args:
        db: The DB directory; it may still be in the making.
        backend: Its backend.

    Raises:
        BackendError: The plan can't be had.
        Unavailable: The server does not start.
        OSError: The same.
    """
    server, plan = _started(db, backend)
    finished = threading.Event()
    # A server that writes more than a pipe holds would wait for its reader.
    reading = threading.Thread(target=_keep_reading, args=(server, finished), daemon=True)
    reading.start()
    try:
        machine = this_machine()
        address = Address(
            state="running",
            host=plan.host,
            port=plan.port,
            protocol=plan.protocol,
            node=machine.node,
            boot_id=machine.boot_id,
            pid=server.pid,
            pid_namespace=machine.pid_namespace,
            start_time=server.start,
            details=dict(plan.details),
        )
        with instead(db, address):
            yield address
    finally:
        finished.set()
        reading.join()
        _end(server, plan)


def _started(db: DBDir, backend: Backend) -> tuple[ServerProcess, ServerPlan]:
    """Return a server that is ready."""
    for attempt in range(1, ATTEMPTS + 1):
        plan = backend.start_server(db, network.LOOPBACK, network.choose_port(network.LOOPBACK), tls=True)
        server = ServerProcess(db, plan)
        try:
            while not server.ended():
                server.read()
                if plan.is_ready(PROBE):
                    return server, plan
                if server.seconds > plan.ready_timeout:
                    raise _never_ready(db, server, f"was not ready after {plan.ready_timeout:g} s")
                time.sleep(POLL)
        except BaseException:
            _end(server, plan)
            raise
        if attempt == ATTEMPTS:
            raise _never_ready(db, server, server.describe_end())
    raise AssertionError  # for mypy


def _never_ready(db: DBDir, server: ServerProcess, what: str) -> Unavailable:
    last = server.last_lines[-1] if server.last_lines else "it said nothing"
    return Unavailable(f"the database server of {shown(db.path)} {what}: {last}")


def _keep_reading(server: ServerProcess, finished: threading.Event) -> None:
    while not finished.is_set() and (output := server.output) is not None:
        if select.select([output], [], [], POLL)[0]:  # no longer, since the end waits for this
            server.read()


def _end(server: ServerProcess, plan: ServerPlan) -> None:
    """Stop the server by the signals of its plan, then by force, and wait until it has ended."""
    for number, seconds in plan.stop:
        if server.ended():
            return
        server.signal(number)
        deadline = time.monotonic() + seconds
        while not server.ended() and time.monotonic() < deadline:
            server.read()
            time.sleep(POLL / 4)
    while not server.ended():
        server.kill()
        time.sleep(POLL)
