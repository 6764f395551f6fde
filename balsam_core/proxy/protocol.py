"""What travels between a client and the write server.

ZeroMQ delivers authenticated, encrypted messages in order as long as a connection lasts, but doesn't tell what became
of them. So each request is answered, and a client without an answer sends the same request, with the same request id,
again: on another connection, or to another server. The request id makes it take effect once.

A message is one frame: one of the structures below in MessagePack. The requests of a connection are numbered, and the
answer repeats the number.
"""

from __future__ import annotations

import zlib
from functools import cache
from typing import Annotated, Any

import msgspec

from balsam_core.errors import SchemaMismatch
from balsam_core.model import app, calls, filters, job, states
from balsam_core.schema import SCHEMA

PROTOCOL = 1
NAME = f"balsam/{PROTOCOL}"  # the protocol's name in `dbwriter_address`

LARGEST_REQUEST = 16 * 1024 * 1024  # bytes
LARGEST_REPLY = 64 * 1024 * 1024  # bytes

OPERATIONS: dict[str, type[calls.Call[Any]]] = {
    kind.operation(): kind
    for kind in vars(calls).values()
    if isinstance(kind, type)
    and issubclass(kind, calls.Call)
    and kind not in {calls.Call, calls.Read, calls.Write}
    and kind.__module__ == calls.__name__
}
"""The calls that there are, by name."""

Number = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
ClientId = Annotated[str, msgspec.Meta(pattern=r"^(?:[0-9a-f]{32})?\Z", max_length=32)]
Word = Annotated[str, msgspec.Meta(max_length=64)]
Version = Annotated[str, msgspec.Meta(pattern=r"^[ -~]*\Z", max_length=64)]


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello", forbid_unknown_fields=True):
    """The first message of a connection: which versions the client speaks.

    Attributes:
        number: Number of the request on its connection.
        protocol: :data:`PROTOCOL`.
        schema: The schema that the client's program works with.
        catalogue: Digest of the calls that it knows; see :func:`catalogue`.
        program: Who it is, for the server's log.
    """

    number: Number
    protocol: int
    schema: Version
    catalogue: Version
    program: Annotated[str, msgspec.Meta(max_length=200)] = ""


class CallRequest(msgspec.Struct, frozen=True, array_like=True, tag="run", forbid_unknown_fields=True):
    """An encoded call.

    Attributes:
        number: Number of the request on its connection.
        operation: The call's name on the wire.
        call: The encoded call.
        deadline: By the server's clock, which :class:`Welcome` told. A call that comes later is refused, so that a
            client that has given up knows that nothing will happen any more.
        client: With ``seq`` the request id: the client's uuid.
        seq: Number of the write, or of the read, among the client's.
        acked: For a write: all writes up to this number are answered.
    """

    number: Number
    operation: Word
    call: msgspec.Raw
    deadline: float
    client: ClientId = ""
    seq: Number = 0
    acked: Number = 0


class StatusRequest(msgspec.Struct, frozen=True, array_like=True, tag="status", forbid_unknown_fields=True):
    """Asks for the server's status.

    Attributes:
        number: Number of the request on its connection.
    """

    number: Number


Request = Hello | CallRequest | StatusRequest


class Welcome(msgspec.Struct, frozen=True, array_like=True):
    """The answer to :class:`Hello`.

    Attributes:
        clock: The server's monotonic clock, seconds.
        epoch: The server's number among the servers of this database.
    """

    clock: float
    epoch: int


class Reply(msgspec.Struct, frozen=True, array_like=True):
    """An answer.

    Attributes:
        number: Number of the request on its connection.
        code: Empty, or the code of an error of :mod:`balsam_core.errors`.
        body: The encoded answer, or the error's message as encoded text.
    """

    number: int
    code: str
    body: msgspec.Raw


encode = msgspec.msgpack.Encoder().encode
decode_request = msgspec.msgpack.Decoder(Request).decode  # raises msgspec.DecodeError
decode_reply = msgspec.msgpack.Decoder(Reply).decode


@cache
def catalogue() -> str:
    """Return a digest of all calls and answers, and of the structures in them; equal digests mean equal calls.

    Types are taken as they are written: a change inside a type shows in the structure that defines it.
    """
    parts = []
    for module in (app, calls, filters, job):
        for name, kind in sorted(vars(module).items()):
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__:
                fields = list(kind.__annotations__.items())
                parts.append(repr((name, kind.__struct_config__.tag, fields)))
    parts.append(repr([str(state) for state in states.State]))
    # Against accidents, not against malice; hashlib would cost a command 3 ms.
    return f"{zlib.crc32(''.join(parts).encode()):08x}"


def check_hello(hello: Hello) -> None:
    """Raise SchemaMismatch where the client's program is another version than this server."""
    compared: list[tuple[str, object, object]] = [
        ("protocol", PROTOCOL, hello.protocol),
        ("schema", SCHEMA, hello.schema),
        ("operations", catalogue(), hello.catalogue),
    ]
    if differences := [f"{name} {ours} against {theirs}" for name, ours, theirs in compared if ours != theirs]:
        raise SchemaMismatch(
            f"the server runs another version of Balsam than this program ({', '.join(differences)}): "
            f"restart the server with the version that all programs use: balsam dbserver --stop, then balsam dbserver"
        )
