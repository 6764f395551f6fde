"""Calls and results as bytes: MessagePack by msgspec, with every type checked on decoding.

The same codec runs on every transport, in-process ones too, so that what works on one works on all.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from balsam_core.errors import InvalidInput

if TYPE_CHECKING:
    from balsam_core.model.calls import Call

__all__ = ["decode", "decode_call", "decode_result", "encode", "encode_call"]

R = TypeVar("R")

encode = msgspec.msgpack.Encoder().encode
"""Encode a call or a result."""

decode = msgspec.msgpack.Decoder().decode
"""Decode a value of no particular type."""


def encode_call(call: Call[R]) -> bytes:
    """Encode a call.

    Raises:
        InvalidInput: A value can't travel: an object of an unknown type, invalid Unicode, a number too large.
    """
    try:
        return encode(call)
    except (TypeError, UnicodeEncodeError, OverflowError, RecursionError) as err:
        msg = f"{call.operation()}: a value can't be stored: {err}"
        raise InvalidInput(msg) from None


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:  # noqa: ANN401  (any type form)
    return msgspec.msgpack.Decoder(kind)


def decode_call(kind: type[Call[R]], data: bytes) -> Call[R]:
    """Return the call of this kind.

    Raises:
        InvalidInput: A value has the wrong type or is out of range; the message says where.
    """
    try:
        return _decoder(kind).decode(data)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        msg = f"{kind.operation()}: {err}"
        raise InvalidInput(msg) from None


def decode_result(kind: type[Call[R]], data: bytes) -> R:
    """Return the result of a call of this kind."""
    return _decoder(kind.result_type()).decode(data)  # type: ignore[no-any-return]
