"""Reading a ZeroMQ socket's monitor: https://libzmq.readthedocs.io/en/latest/zmq_socket_monitor.html.

pyzmq's function for it lives in a module that imports asyncio, which costs a command 40 ms.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import zmq

if TYPE_CHECKING:
    from collections.abc import Iterator

_EVENT = struct.Struct("=HI")


def events(monitor: zmq.Socket[bytes]) -> Iterator[tuple[int, int]]:
    """Give the events that have happened: number and value, e.g. ``(zmq.EVENT_ACCEPTED, descriptor)``."""
    while True:
        try:
            event, _endpoint = monitor.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield _EVENT.unpack(event)
