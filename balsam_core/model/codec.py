"""Calls and results as bytes: MessagePack by msgspec, with every type checked on decoding.

The same codec runs on every transport, in-process ones too, so that what works on one works on all.
"""

from __future__ import annotations

import threading
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from balsam_core.errors import Corrupt, InvalidInput, SchemaMismatch

if TYPE_CHECKING:
    from balsam_core.model.calls import Call

R = TypeVar("R")

encode = msgspec.msgpack.Encoder().encode
"""Encode a call or a result."""


def encode_call(call: Call[R]) -> bytes:
    """Encode a call.

    Raises:
        InvalidInput: A value can't travel: an object of an unknown type, invalid Unicode, a number too large.
    """
    try:
        return encode(call)
    except (TypeError, UnicodeEncodeError, OverflowError, RecursionError) as err:
        raise InvalidInput(f"{call.operation()}: a value can't be stored: {err}") from None


@cache
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:  # noqa: ANN401  (any type form)
    # A second thread would get what the first has made of the types so far, and decoding with that crashes.
    with _making:
        return msgspec.msgpack.Decoder(kind)


_making = threading.Lock()


def decode_call(kind: type[Call[R]], data: bytes) -> Call[R]:
    """Return the call of this kind.

    Raises:
        InvalidInput: A value has the wrong type or is out of range; the message says where.
    """
    try:
        return _decoder(kind).decode(data)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise InvalidInput(f"{kind.operation()}: {err}") from None


def decode_result(kind: type[Call[R]], data: bytes) -> R:
    """Return the result of a call of this kind.

    Raises:
        SchemaMismatch: A value has another type than this program expects.
        Corrupt: The bytes are no encoded value.
    """
    result: R = decode_stored(kind.result_type(), data, f"the answer to {kind.operation()}")
    return result


def decode_stored(kind: Any, data: bytes, what: str) -> Any:  # noqa: ANN401  (any type form)
    """Return a stored value of a type; errors as from :func:`decode_result`, with ``what`` it is."""
    try:
        return _decoder(kind).decode(data)
    except msgspec.ValidationError as err:
        raise SchemaMismatch(
            f"{what} holds a value that this program can't read ({err}): the database was written by another version; "
            f"upgrade balsam-core with pip, then run: balsam init PATH"
        ) from err
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise Corrupt(f"{what} is damaged ({err})") from err
