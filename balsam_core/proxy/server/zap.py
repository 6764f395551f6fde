"""Which clients may connect: the handler of ZeroMQ's authentication protocol, https://rfc.zeromq.org/spec/27/.

CURVE alone encrypts, and proves that a client has the secret key of the public key that it shows; without a handler any
key is accepted. pyzmq's handler needs asyncio, which would add to the 60 MB of an idle server.
"""

from __future__ import annotations

import logging
import threading

import zmq
import zmq.utils.z85

logger = logging.getLogger(__name__)

DOMAIN = b"balsam"
_ENDPOINT = "inproc://zeromq.zap.01"
_CREDENTIALS = 6  # frames before them: version, request id, domain, address, identity, mechanism


class ZapAuthenticator:
    """Accepts clients with one public key. It has its own thread, so that handshakes don't wait for a long transaction.

    Args:
        context: The context of the sockets to protect; make this object before them.
        key: The public key in Z85.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], key: str) -> None:
        self._refused = 0
        self._key = zmq.utils.z85.decode(key.encode())
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(_ENDPOINT)
        self._thread = threading.Thread(target=self._answer_requests, name="zap", daemon=True)
        self._thread.start()

    def _answer_requests(self) -> None:
        try:
            while True:
                self._socket.send_multipart(self._reply_to(self._socket.recv_multipart()))
        except zmq.ContextTerminated:
            self._socket.close()

    def _reply_to(self, request: list[bytes]) -> list[bytes]:
        """Return the reply: version, request id, status, reason, user id, metadata."""
        number = request[1] if len(request) > 1 else b""
        accepted = (
            len(request) == _CREDENTIALS + 1
            and request[0] == b"1.0"
            and request[2] == DOMAIN
            and request[5] == b"CURVE"
            and request[_CREDENTIALS] == self._key
        )
        if accepted:
            return [b"1.0", number, b"200", b"OK", b"client", b""]
        if len(request) > 3:  # noqa: PLR2004
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:  # the 1st, 2nd, 4th, 8th ...
                place = request[3].decode(errors="replace")
                logger.warning("%d connections refused, the last from %s: another key", self._refused, place)
        return [b"1.0", number, b"400", b"unknown key", b"", b""]
