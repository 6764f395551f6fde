"""``ServedTransport``: through the write server while one is published, straight to the engine while none is.

Never past a published server: a program that has the engine open checks for one inside each transaction, and gives the
transaction up. Both ways share the request ids, so a write that was sent to a server which then stopped takes effect
once, whichever process runs it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from balsam_core.dbdir.address import is_here
from balsam_core.dbdir.publication import Publication
from balsam_core.errors import (
    AddressError,
    BackendError,
    BalsamError,
    DBDirError,
    OutcomeUnknown,
    SchemaMismatch,
    ServerNotRunning,
    Unavailable,
)
from balsam_core.model.calls import MOST_JOBS, GetJobs, GetRows
from balsam_core.model.codec import decode_call
from balsam_core.transport.base import ClientSession, EncodedTransport, ServerStatus, TryAgainError
from balsam_core.transport.deadlines import GRACE
from balsam_core.transport.native import NativeTransport

if TYPE_CHECKING:
    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.model.calls import Call, RequestId
    from balsam_core.plugin_types import EngineRole
    from balsam_core.proxy.client.exchange import Exchange, ProxyClient
    from balsam_core.proxy.single_writer import SingleWriter

R = TypeVar("R")

STATUS_TIMEOUT = 10.0  # seconds

_decode_status = msgspec.msgpack.Decoder(ServerStatus).decode


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
        self._client: ProxyClient | None = None
        self._lock = threading.RLock()
        with suppress(AddressError):  # the first call waits until it is written again
            if self._publication.current() is None:
                self._open_direct()

    def perform(self, kind: type[Call[R]], data: bytes, request_id: RequestId | None, deadline: float) -> bytes:
        """Run an encoded call; see :meth:`EncodedTransport.perform`."""
        exchange: Exchange | None = None
        while True:
            try:
                self.check_open()
                published = self._publication.await_current(deadline)
                if published is None:
                    return self._open_direct().perform(kind, data, request_id, deadline)
                self._close_direct()
                if exchange is None:
                    if request_id is None and (answer := self._read_bulk(published, kind, data, deadline)) is not None:
                        return answer
                    exchange = self._open_client().exchange(kind, data, request_id, deadline)
                return exchange.attempt(published)
            except TryAgainError:
                if time.monotonic() > deadline + GRACE:
                    what = f"the server of {self._publication.name} was started and stopped again until the deadline"
                    raise _outcome(Unavailable(what), exchange) from None
            except (
                Unavailable,
                BackendError,
                DBDirError,
                SchemaMismatch,
            ) as err:
                # They say nothing of an attempt before.
                if exchange is None or not exchange.may_be_applied:
                    raise
                raise _outcome(err, exchange) from err

    def _read_bulk(self, server: Address, kind: type[Call[R]], data: bytes, deadline: float) -> bytes | None:
        """Read many jobs from the engine, beside the server, which a million jobs would keep busy.

        Returns None where the read isn't one of many jobs, or where this can't be done.
        """
        if not _is_bulk(kind, data) or not self._single.shared or not is_here(server):
            return None
        try:
            with self._lock:
                if self._bulk_reader is None:
                    self._bulk_reader = self._native("reader")
            return self._bulk_reader.perform(kind, data, None, deadline)
        except (Unavailable, ServerNotRunning):
            return None

    def _open_direct(self) -> NativeTransport:
        with self._lock:
            if self._direct is None:
                self._direct = self._native("writer")
            return self._direct

    def _native(self, role: EngineRole) -> NativeTransport:
        return NativeTransport(
            self._single.open_engine(role),
            db=self._db,
            is_retryable=self._single.is_retryable,
            translate=self._single.translate,
            session=self._session,
            guard=self._give_way_to_server if role == "writer" else None,
        )

    def _give_way_to_server(self) -> None:
        try:
            published = self._publication.current()
        except AddressError:  # perhaps of a server
            raise TryAgainError from None
        if published is not None:
            raise TryAgainError

    def _close_direct(self) -> None:
        # Not close(): other threads may be about to use it. They find the server inside their transaction and give the
        # transaction up; their connections are closed when they are given back.
        if self._direct is not None:
            with self._lock:
                direct, self._direct = self._direct, None
            if direct is not None:
                direct.engine.dispose()

    def _open_client(self) -> ProxyClient:
        with self._lock:
            if self._client is None:
                from balsam_core.proxy.client.exchange import ProxyClient

                self._client = ProxyClient(self._publication, self._session)
            return self._client

    def server_status(self) -> ServerStatus | None:
        """Ask the server how it is; None while none is published."""
        exchange: Exchange | None = None
        deadline = time.monotonic() + STATUS_TIMEOUT
        while True:
            self.check_open()
            published = self._publication.await_current(deadline)
            if published is None:
                return None
            if exchange is None:
                exchange = self._open_client().status_exchange(deadline)
            with suppress(TryAgainError):
                return _decode_status(exchange.attempt(published))

    def close(self) -> None:
        """Close all connections."""
        self._closed = True
        for connection in (self._direct, self._bulk_reader, self._client):
            if connection is not None:
                connection.close()


def _outcome(err: BalsamError, exchange: Exchange | None) -> Exception:
    """Return the error, or, where a server may have applied the write all the same, one that says so."""
    if exchange is None or not exchange.may_be_applied:
        return err
    return OutcomeUnknown(f"{err}; the write was sent before, and may or may not have been applied")


def _is_bulk(kind: type[Call[Any]], data: bytes) -> bool:
    """Return whether a read continues a long one, or is a very large one."""
    if kind not in {GetJobs, GetRows}:
        return False
    call: Any = decode_call(kind, data)
    return call.after is not None or call.limit > MOST_JOBS
