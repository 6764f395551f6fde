"""Reads beside the writer, in processes of their own.

Python runs one thread at a time: a thread that makes a page of 2,000 jobs would hold up the writing thread for up to
5 ms at each of its statements. The processes are forked before the database is opened, since SQLite's locks must not be
carried over a fork, and share the memory of the libraries with the server. If one dies, so does the server, and both
start anew.
"""

from __future__ import annotations

import gc
import logging
import os
import resource
import signal
import time
from collections import deque
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING, Any

import msgspec

from balsam_core.errors import BalsamError, TooLarge
from balsam_core.model.codec import encode
from balsam_core.proxy.protocol import LARGEST_REPLY, Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balsam_core.model.calls import Call
    from balsam_core.proxy.serving import SingleWriter

__all__ = ["Order", "Reader", "ReaderLostError", "Readers"]

logger = logging.getLogger(__name__)

ADDRESS_SPACE = 2 * 1024**3  # bytes of each process; a read that needs more fails
MOST_OF_ONE = 100  # reads of one client that wait; ours wait for each answer before they ask again


class ReaderLostError(Exception):
    """A reading process has died."""


class Order(msgspec.Struct, array_like=True):
    """What a reading process is asked: the request's number, the operation, the call, the deadline."""

    id: int
    operation: str
    call: bytes
    deadline: float


class Reader:
    """A reading process, seen from the server.

    Attributes:
        pipe: The way to it; readable when it has answered.
        identity: The client that waits for it, None while it is idle.
    """

    def __init__(self, pipe: Connection, pid: int) -> None:
        self.pipe = pipe
        self.pid = pid
        self.identity: bytes | None = None


class Readers:
    """The reading processes and the queue before them.

    Args:
        single: The engine.
        operations: The calls that there are, by name.
        number: How many processes.
    """

    def __init__(self, single: SingleWriter, operations: Mapping[str, type[Call[Any]]], number: int) -> None:
        self._waiting: dict[bytes, deque[Order]] = {}  # by client; they take turns
        self.all: list[Reader] = []
        gc.collect()
        gc.freeze()  # so that a collection doesn't copy the pages that all share
        for _ in range(number):
            ours, theirs = Pipe()
            pid = os.fork()
            if not pid:
                for other in [ours, *(reader.pipe for reader in self.all)]:
                    other.close()
                _live(theirs, single, operations)
            theirs.close()
            self.all.append(Reader(ours, pid))

    def ask(self, identity: bytes, order: Order) -> bool:
        """Let a call be run as soon as a process is free; False where too many of this client are waiting."""
        orders = self._waiting.setdefault(identity, deque())
        if len(orders) >= MOST_OF_ONE:
            return False
        orders.append(order)
        self._dispatch()
        return True

    def answer(self, reader: Reader) -> tuple[bytes, bytes]:
        """Return the client that waited for a process, and its encoded reply.

        Raises:
            ReaderLostError: The process has died.
        """
        try:
            reply = reader.pipe.recv_bytes()
        except (EOFError, OSError):
            raise ReaderLostError from None
        identity, reader.identity = reader.identity, None
        self._dispatch()
        return identity or b"", reply

    def _dispatch(self) -> None:
        for reader in self.all:
            while self._waiting and reader.identity is None:
                identity = next(iter(self._waiting))
                orders = self._waiting.pop(identity)
                order = orders.popleft()
                if orders:
                    self._waiting[identity] = orders  # behind the other clients
                if order.deadline < time.monotonic():
                    continue  # nobody waits for it any more
                reader.identity = identity
                try:
                    reader.pipe.send_bytes(encode(order))
                except OSError:
                    raise ReaderLostError from None

    def close(self) -> None:
        """End the processes."""
        for reader in self.all:
            reader.pipe.close()
        for reader in self.all:
            os.kill(reader.pid, signal.SIGKILL)
            os.waitpid(reader.pid, 0)


def _live(pipe: Connection, single: SingleWriter, operations: Mapping[str, type[Call[Any]]]) -> None:
    """Answer calls until the server is gone; never returns."""
    code = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = ADDRESS_SPACE if most == resource.RLIM_INFINITY else min(ADDRESS_SPACE, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        _answer_all(pipe, single, operations)
        code = 0
    except BaseException:
        logger.exception("a reading process ends")
        raise
    finally:
        os._exit(code)


def _answer_all(pipe: Connection, single: SingleWriter, operations: Mapping[str, type[Call[Any]]]) -> None:
    from balsam_core.transport import NativeTransport

    decode = msgspec.msgpack.Decoder(Order).decode
    transport = None
    while True:
        try:
            order = decode(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            if transport is None:
                engine = single.open_engine("reader")
                transport = NativeTransport(engine, is_retryable=single.is_retryable, translate=single.translate)
            body = transport.perform(operations[order.operation], order.call, None, order.deadline)
            if len(body) > LARGEST_REPLY:
                msg = f"{order.operation}: the answer has {len(body)} bytes; ask for fewer jobs, or sort them by id"
                raise TooLarge(msg)
            reply = Reply(order.id, "", msgspec.Raw(body))
        except BalsamError as err:
            reply = _refusal(order, err)
        except MemoryError:
            reply = _refusal(order, TooLarge(f"{order.operation}: the answer is too large for the server's memory"))
        except Exception as err:  # no call may end the server
            logger.exception("%s failed", order.operation)
            reply = _refusal(order, BalsamError(f"{order.operation} failed in the server ({err!r}); see its log"))
        try:
            pipe.send_bytes(encode(reply))
        except OSError:
            return


def _refusal(order: Order, err: BalsamError) -> Reply:
    return Reply(order.id, err.code, msgspec.Raw(encode(err.message)))
