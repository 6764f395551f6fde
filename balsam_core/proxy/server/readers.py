"""Reads beside the writer, in processes of their own.

Python runs one thread at a time: a thread that makes a page of 2,000 jobs would delay each statement of the writing
thread by up to 5 ms. The processes are forked before the database is opened, since SQLite's locks must not be carried
over a fork, and share the memory of the libraries with the server. If one dies, the server ends too, and both start
anew.
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
from typing import TYPE_CHECKING

import msgspec

from balsam_core.errors import BalsamError, TooLarge
from balsam_core.model.codec import encode
from balsam_core.proxy.protocol import LARGEST_REPLY, OPERATIONS, CallRequest
from balsam_core.proxy.server.answers import Answer, error_answer, lacks

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.proxy.single_writer import SingleWriter

logger = logging.getLogger(__name__)

decode_answer = msgspec.msgpack.Decoder(Answer).decode

ADDRESS_SPACE = 2 * 1024**3  # bytes of each process; a read that needs more fails
MOST_WAITING = 100  # reads of one client; Balsam's own clients wait for each answer before they ask again


class ReaderLostError(Exception):
    """A reading process has died.

    Attributes:
        asked: The read that it was busy with, None for none.
    """

    def __init__(self, asked: PendingRead | None) -> None:
        super().__init__()
        self.asked = asked


class PendingRead(msgspec.Struct):
    """A read that waits or runs, and who wants the answer: the newest sender."""

    key: tuple[str, int]
    identity: bytes
    request: CallRequest


class Reader(msgspec.Struct):
    """A reading process, seen from the server.

    Attributes:
        pipe: The way to it; readable when it has answered.
        pid: Its process id.
        asked: What it works on, None while it is idle.
    """

    pipe: Connection
    pid: int
    asked: PendingRead | None = None


class Readers:
    """The reading processes, ``count`` of them, and the queue before them."""

    def __init__(self, db: DBDir, single: SingleWriter, count: int) -> None:
        self._waiting: dict[str, deque[PendingRead]] = {}  # by client; they take turns
        self._by_key: dict[tuple[str, int], PendingRead] = {}
        self.all: list[Reader] = []
        gc.collect()
        gc.freeze()  # so that a collection doesn't copy the pages that all share
        for _ in range(count):
            ours, theirs = Pipe()
            pid = os.fork()
            if not pid:
                for other in [ours, *(reader.pipe for reader in self.all)]:
                    other.close()
                _serve_reads(theirs, db, single)
            theirs.close()
            self.all.append(Reader(ours, pid))

    def ask(self, key: tuple[str, int], identity: bytes, request: CallRequest) -> bool:
        """Let a call be run as soon as a process is free; False where too many of this client are waiting.

        Args:
            key: The client and its number of the call, the same however often it is sent.
            identity: The connection that waits for the answer.
            request: The call.
        """
        if earlier := self._by_key.get(key):
            earlier.identity, earlier.request = identity, request
            return True
        orders = self._waiting.setdefault(key[0], deque())
        if len(orders) >= MOST_WAITING:
            return False
        self._by_key[key] = asked = PendingRead(key, identity, request)
        orders.append(asked)
        self._dispatch()
        return True

    def answer(self, reader: Reader) -> tuple[PendingRead, Answer]:
        """Return the read that a process has finished, and its outcome.

        Raises:
            ReaderLostError: The process has died.
        """
        asked = reader.asked
        try:
            answer = decode_answer(reader.pipe.recv_bytes())
        except (EOFError, OSError):
            raise ReaderLostError(asked) from None
        if asked is None:
            raise ReaderLostError(asked)
        reader.asked = None
        del self._by_key[asked.key]
        self._dispatch()
        return asked, answer

    def _dispatch(self) -> None:
        for reader in self.all:
            while self._waiting and reader.asked is None:
                client = next(iter(self._waiting))
                orders = self._waiting.pop(client)
                asked = orders.popleft()
                if orders:
                    self._waiting[client] = orders  # behind the other clients
                if asked.request.deadline < time.monotonic():
                    del self._by_key[asked.key]
                    continue  # nobody waits for it any more
                reader.asked = asked
                try:
                    reader.pipe.send_bytes(encode(asked.request))
                except OSError:
                    raise ReaderLostError(asked) from None

    def close(self) -> None:
        """End the processes."""
        for reader in self.all:
            reader.pipe.close()
        for reader in self.all:
            os.kill(reader.pid, signal.SIGKILL)
            os.waitpid(reader.pid, 0)


def _serve_reads(pipe: Connection, db: DBDir, single: SingleWriter) -> None:
    """Answer calls until the server is gone; never returns."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        limit = ADDRESS_SPACE if most == resource.RLIM_INFINITY else min(ADDRESS_SPACE, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
        _answer_all(pipe, db, single)
        code = 0
    except BaseException:
        logger.exception("a reading process ends")
        raise
    finally:
        os._exit(code)


def _answer_all(pipe: Connection, db: DBDir, single: SingleWriter) -> None:
    from balsam_core.transport.native import NativeTransport

    decode = msgspec.msgpack.Decoder(CallRequest).decode
    transport = None
    while True:
        try:
            request = decode(pipe.recv_bytes())
        except (EOFError, OSError):
            return
        try:
            if transport is None:
                engine = single.open_engine("reader")
                transport = NativeTransport(engine, db=db, is_retryable=single.is_retryable, translate=single.translate)
            kind = OPERATIONS[request.operation]
            body = transport.perform(kind, bytes(request.call), None, request.deadline)
            if len(body) > LARGEST_REPLY:
                raise TooLarge(
                    f"{request.operation}: the answer has {len(body)} bytes; ask for fewer jobs, or sort them by id"
                )
            answer = Answer("", body)
        except BalsamError as err:
            answer = error_answer(err)
        except MemoryError:
            answer = error_answer(TooLarge(f"{request.operation}: the answer is too large for the server's memory"))
        except OSError as err:
            answer = error_answer(lacks(request.operation, err))
        except Exception as err:  # no call may end the server
            logger.exception("%s failed", request.operation)
            answer = error_answer(BalsamError(f"{request.operation} failed in the server ({err!r}); see its log"))
        try:
            pipe.send_bytes(encode(answer))
        except OSError:
            return
