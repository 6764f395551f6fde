"""``ServerConnector``: a driver's connections to the server of a DB directory that is published at the moment."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from balsam_core.dbdir.address import is_gone
from balsam_core.dbdir.publication import RESTART_TIMEOUT, TROUBLE_AFTER, Publication, server_not_running
from balsam_core.errors import BalsamError, ServerNotRunning
from balsam_core.system.files import pasted
from balsam_core.transport.deadlines import call_deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir

PROBE_TIMEOUT = 1.0  # seconds to find out whether anything listens at an address


class ServerConnector:
    """Opens connections: SQLAlchemy's ``creator`` for a database whose server Balsam runs.

    A server that was started again may have another address, so the file is read before each connection. While it is
    missing or damaged, it is waited for until the call's deadline.

    Args:
        db: The DB directory.
        connect: Opens the driver's connection to an address. An error that may not come again, such as a refused
            connection, is the driver's; the transport repeats it. One that no repetition mends, such as a wrong
            password, is a BalsamError.
    """

    def __init__(self, db: DBDir, connect: Callable[[Address], Any]) -> None:
        self._publication = Publication(db)
        self._connect = connect
        # One tuple, since threads share it: the address that doesn't answer, and since when.
        self._unreachable: tuple[Address | None, float] = (None, 0.0)

    def __call__(self) -> Any:  # noqa: ANN401  (a driver's connection)
        """Return a new connection.

        Raises:
            ServerNotRunning: No server is published, or the published one is not there.
            Unavailable: It can't be reached from this machine.
            AddressError: ``dbwriter_address`` is missing or damaged, and stayed so.
            BalsamError: The server was given up.
        """
        published = self._publication.await_current(call_deadline())
        if published is None:
            raise server_not_running(self._publication.db)
        self._publication.check_reachable(published)
        try:
            connection = self._connect(published)
        except BalsamError:
            raise
        except Exception:
            self._publication.forget()
            address, since = self._unreachable
            if address != published:
                self._unreachable = published, time.monotonic()
            elif time.monotonic() - since > RESTART_TIMEOUT and (is_gone(published) or not _listens(published)):
                name = self._publication.name
                remedy = (
                    self._publication.trouble()
                    or f": start it with balsam dbserver --path={pasted(self._publication.db.path)}"
                )
                raise ServerNotRunning(
                    f"the server of {name}, published at {published.endpoint}, is not there{remedy}"
                ) from None
            if address == published and time.monotonic() - since > TROUBLE_AFTER:
                self._publication.tell_trouble()
            raise
        self._unreachable = None, 0.0
        return connection


def _listens(published: Address) -> bool:
    """Return whether a server may listen at an address; one that doesn't answer at all may be cut off for a while."""
    try:
        socket.create_connection((published.host, published.port), PROBE_TIMEOUT).close()
    except OSError as err:
        return not isinstance(err, ConnectionRefusedError)
    return True
