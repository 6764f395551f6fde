"""``ServedTransport``: through the write server while one is published, straight to the engine while none is.

Never past a published server: a program that had the engine open finds the published address inside its next
transaction, which it then gives up. Both ways share the numbers of the writes, so a write that was sent to a server
which then stopped takes effect once, whoever carries it out.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from balsam_core.dbdir.address import is_here
from balsam_core.dbdir.publication import NotPublishedError, Publication
from balsam_core.errors import ServerNotRunning, Unavailable
from balsam_core.model.calls import MOST_JOBS, GetJobs, GetRows
from balsam_core.model.codec import decode_call
from balsam_core.system.files import shown
from balsam_core.transport.native import ClientSession, EncodedTransport, NativeTransport

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import Call, RequestId
    from balsam_core.plugin_types import EngineRole
    from balsam_core.proxy.client.transport import ProxyTransport, Sending
    from balsam_core.proxy.single_writer import SingleWriter
    from balsam_core.transport.native import ServerStatus

__all__ = ["ServedTransport"]

R = TypeVar("R")


class _ServedError(Exception):
    """A server was published: the transaction in hand is not ours to finish."""


class ServedTransport(EncodedTransport):
    """Runs calls on the write server of a DB directory, or on its engine where there is no server.

    Args:
        db: The DB directory.
        single: The engine.

    Raises:
        BalsamError: No server is published, and the engine can't be opened.
    """

    def __init__(self, db: DBDir, single: SingleWriter) -> None:
        super().__init__(ClientSession())
        self._db = db
        self._single = single
        self._publication = Publication(db)
        self._direct: NativeTransport | None = None
        self._bulk_reader: NativeTransport | None = None
        self._proxy: ProxyTransport | None = None
        self._lock = threading.RLock()
        if self._publication.current() is None:
            self._open_direct()

    def perform(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> bytes:
        """Run an encoded call; see :meth:`EncodedTransport.perform`."""
        if self._publication.current() is None and self._proxy is None:
            try:
                return self._open_direct().perform(kind, data, request_id, deadline)
            except _ServedError:
                pass
        from balsam_core.proxy.client.transport import LOCAL_ERRORS, Sending

        sending = Sending()
        try:
            return self._perform(kind, data, request_id, deadline, sending)
        except LOCAL_ERRORS as err:
            raise sending.judged(err, request_id) from err

    def _perform(
        self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float, sending: Sending
    ) -> bytes:
        while True:
            try:
                self.check_open()
                if self._publication.current() is None:
                    return self._open_direct().perform(kind, data, request_id, deadline)
                self._close_direct()
                if request_id is None and _is_bulk(kind, data):
                    answer = self._read_here(kind, data, deadline)
                    if answer is not None:
                        return answer
                return self._open_proxy().send(kind, data, request_id, deadline, sending)
            except (_ServedError, NotPublishedError):
                if time.monotonic() > deadline:
                    msg = f"the server of {shown(self._db.path)} came and went until the time was over"
                    raise Unavailable(msg) from None

    def _read_here(self, kind: type[Call[R]], data: bytes, deadline: float) -> bytes | None:
        """Read from the engine beside the server, None where that can't be: a million jobs would keep it busy."""
        published = self._publication.current()
        if not self._single.shared or published is None or not is_here(published):
            return None
        try:
            with self._lock:
                if self._bulk_reader is None:
                    self._bulk_reader = self._native("reader", guarded=False)
            return self._bulk_reader.perform(kind, data, None, deadline)
        except (Unavailable, ServerNotRunning):
            return None

    def _open_direct(self) -> NativeTransport:
        with self._lock:
            if self._direct is None:
                self._direct = self._native("writer", guarded=True)
            return self._direct

    def _native(self, role: EngineRole, *, guarded: bool) -> NativeTransport:
        return NativeTransport(
            self._single.open_engine(role),
            is_retryable=self._single.is_retryable,
            translate=self._single.translate,
            session=self._session,
            guard=self._refuse_served if guarded else None,
        )

    def _refuse_served(self) -> None:
        if self._publication.current() is not None:
            raise _ServedError

    def _close_direct(self) -> None:
        # Other threads may be inside a transaction; they find the server at their next one, and the last one closes.
        if self._direct is not None:
            with self._lock:
                direct, self._direct = self._direct, None
            if direct is not None:
                direct.engine.dispose()

    def _open_proxy(self) -> ProxyTransport:
        with self._lock:
            if self._proxy is None:
                from balsam_core.proxy.client.transport import ProxyTransport

                self._proxy = ProxyTransport(self._publication, self._session)
            return self._proxy

    def server_status(self) -> ServerStatus | None:
        """Ask the server how it is; None while none is published."""
        try:
            return self._open_proxy().server_status() if self._publication.current() else None
        except NotPublishedError:
            return None

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for transport in (self._direct, self._bulk_reader, self._proxy):
            if transport is not None:
                transport.close()


def _is_bulk(kind: type[Call[Any]], data: bytes) -> bool:
    """Say whether a read is the continuation of a long one, or a very large one."""
    if kind not in {GetJobs, GetRows}:
        return False
    call: Any = decode_call(kind, data)
    return call.after is not None or call.limit > MOST_JOBS
