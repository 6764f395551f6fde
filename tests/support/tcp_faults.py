"""A bad network between clients and a server: a TCP proxy on 127.0.0.1 whose faults are switched while it runs.

::

    with FaultyLink(("127.0.0.1", server_port)) as link:
        ...  # clients connect to link.port
        link.swallow_replies(1)  # the next answer never arrives
        link.hold()  # a split network: nothing passes, no connection breaks
        link.heal()

It knows ZeroMQ's framing (a 64-byte greeting, then frames with flags and size), so whole frames are delayed or lost and
a connection stays usable afterwards, also an encrypted one: CURVE accepts gaps. Anything else is passed on piece by
piece as it was received. The proxy runs in a thread of the test's process; all methods may be called from any thread,
and what they order has happened when they return.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

T = TypeVar("T")

SMALL = 40
"""Bytes: a ZeroMQ frame up to this long is no message but a heartbeat (an encrypted PING has 40), and isn't counted."""

GREETING = 64
_LARGEST = 64 * 1024 * 1024  # a longer frame is passed on in pieces
_LONG, _COMMAND = 0x02, 0x04  # flags of a frame


@dataclass
class Direction:
    """What happens on the way to one side, and what has happened there.

    Attributes:
        passed: Messages passed on.
        swallowed: Messages lost.
        seen: The last messages, passed on or lost; encrypted ones differ even if their content is the same.
        lose: Whether everything is lost.
        to_swallow: How many of the next messages are lost.
        delay: Seconds that each piece is late.
    """

    passed: int = 0
    swallowed: int = 0
    seen: list[bytes] = field(default_factory=list)
    lose: bool = False
    to_swallow: int = 0
    delay: float = 0.0


class FaultyLink:
    """The proxy; use it as a context manager.

    Args:
        server: Host and port of the server.

    Attributes:
        port: Where clients connect to; it never changes.
        to_server: Counts of the clients' messages.
        to_clients: Counts of the server's.
    """

    def __init__(self, server: tuple[str, int]) -> None:
        self.server = server
        self.to_server, self.to_clients = Direction(), Direction()
        self._connections: dict[asyncio.Task[None], list[asyncio.StreamWriter]] = {}
        self._open = asyncio.Event()  # not set: held
        self._open.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty link", daemon=True)
        self._listener: asyncio.Server | None = None
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._do(self._listen)
        return self

    def __exit__(self, *_error: object) -> None:
        self._do(self._stop_listening)
        self._do(self._reset)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # ---- switches

    def heal(self) -> None:
        """End all faults. Connections live on where they were not broken; what was held arrives."""

        async def do() -> None:
            for way in (self.to_server, self.to_clients):
                way.lose, way.to_swallow, way.delay = False, 0, 0.0
            self._open.set()
            await self._listen()

        self._do(do)

    def lose_replies(self) -> None:
        """Lose all that the server says, from now on; it notices nothing."""
        self._set(lambda: setattr(self.to_clients, "lose", True))

    def lose_requests(self) -> None:
        """Lose all that clients say, from now on; they notice nothing."""
        self._set(lambda: setattr(self.to_server, "lose", True))

    def blackhole(self) -> None:
        """Lose everything in both directions; connections stay, and new ones are accepted."""
        self.lose_requests()
        self.lose_replies()

    def swallow_replies(self, count: int = 1) -> None:
        """Lose the server's next messages; heartbeats pass."""
        self._set(lambda: setattr(self.to_clients, "to_swallow", count))

    def swallow_requests(self, count: int = 1) -> None:
        """Lose the clients' next messages; heartbeats pass."""
        self._set(lambda: setattr(self.to_server, "to_swallow", count))

    def delay(self, seconds: float) -> None:
        """Let each piece, in both directions, arrive later by this much."""

        def do() -> None:
            self.to_server.delay = self.to_clients.delay = seconds

        self._set(do)

    def hold(self) -> None:
        """Stop passing on and keep everything, as TCP does over a split network; :meth:`heal` lets it arrive."""
        self._set(self._open.clear)

    def reset(self) -> None:
        """Break all connections with RST; new ones are accepted."""
        self._do(self._reset)

    def refuse(self) -> None:
        """Break all connections with RST and refuse new ones, as if nobody listened."""
        self._do(self._stop_listening)
        self._do(self._reset)

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return len(self._connections)

    # ---- the loop's side

    def _do(self, what: Callable[[], object]) -> None:
        asyncio.run_coroutine_threadsafe(what(), self._loop).result(timeout=30)

    def _set(self, what: Callable[[], object]) -> None:
        async def do() -> None:
            what()

        self._do(do)

    async def _listen(self) -> None:
        if self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1000)
            self.port = self._listener.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    async def _reset(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            for writer in self._connections[task]:
                with contextlib.suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers = self._connections[task] = [to_client]
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                from_server, to_server = await asyncio.open_connection(*self.server)
                writers.append(to_server)
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._carry(from_client, to_server, self.to_server))
                    group.create_task(self._carry(from_server, to_client, self.to_clients))
        except* OSError:
            pass  # one side has broken the connection; so does the other now
        finally:
            for writer in writers:
                writer.transport.abort()
            del self._connections[task]

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, way: Direction) -> None:
        """Carry one direction of one connection to its end; then break the other one."""
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, piece = await late.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._open.wait()
                target.write(piece)
                await target.drain()
                late.task_done()

        async with asyncio.TaskGroup() as group:
            delivering = group.create_task(deliver())
            async for piece, is_message in _pieces(source):
                await self._open.wait()
                if self._is_lost(piece, is_message, way):
                    continue
                late.put_nowait((self._loop.time() + way.delay, piece))
            await late.join()
            await self._open.wait()
            delivering.cancel()
        raise ConnectionResetError

    @staticmethod
    def _is_lost(piece: bytes, is_message: bool, way: Direction) -> bool:
        lost = way.lose
        if is_message:
            if way.to_swallow and not lost:
                way.to_swallow -= 1
                lost = True
            way.seen = [*way.seen[-9:], piece]
            way.swallowed += lost
            way.passed += not lost
        return lost


async def _pieces(source: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bool]]:
    """Give what arrives in pieces that can be lost without disturbing the rest, and whether each is a message."""
    piece = await source.read(GREETING)
    if piece[:1] == b"\xff":
        with contextlib.suppress(asyncio.IncompleteReadError):
            left = GREETING
            while left and piece:  # each side sends the rest of it only after it has seen the other's beginning
                yield piece, False
                left -= len(piece)
                piece = await source.read(left) if left else b""
            while True:
                flags = await source.readexactly(1)
                size = await source.readexactly(8 if flags[0] & _LONG else 1)
                length = int.from_bytes(size)
                if length > _LARGEST:
                    yield flags + size, True
                    break
                body = await source.readexactly(length)
                yield flags + size + body, _is_message(flags[0], body)
        piece = await source.read(65536)
    while piece:  # not ZeroMQ, or an endless frame
        yield piece, True
        piece = await source.read(65536)


def _is_message(flags: int, body: bytes) -> bool:
    """Say whether a ZeroMQ frame belongs to a message; under CURVE messages and heartbeats look alike but for size."""
    if flags & _COMMAND:
        return False  # the handshake; heartbeats without encryption
    return not body.startswith(b"\x07MESSAGE") or len(body) > SMALL
