"""A call that writes, as it came to the write server, and the answer to a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from balsam_core.errors import BalsamError, Expired, Unavailable
from balsam_core.model.codec import encode
from balsam_core.system.files import reason

if TYPE_CHECKING:
    from balsam_core.model.calls import Call, RequestId


class PendingWrite(NamedTuple):
    """A call that writes, as it came.

    Attributes:
        kind: The call's class.
        data: The encoded call.
        request_id: Its identity.
        deadline: By this process's monotonic clock; later it is refused.
    """

    kind: type[Call[Any]]
    data: bytes
    request_id: RequestId
    deadline: float


class Answer(NamedTuple):
    """The outcome of a call.

    Attributes:
        code: Empty, or an error's code.
        body: The encoded answer, or the encoded message.
    """

    code: str
    body: bytes


def error_answer(err: BalsamError) -> Answer:
    """Return an error as an answer."""
    return Answer(err.code, encode(err.message))


def lacks(operation: str, err: OSError) -> Unavailable:
    """Return the error for a call that met a lack, e.g. of descriptors for a module that is imported late."""
    return Unavailable(f"{operation} failed in the server ({reason(err)}); nothing was changed, repeat it")


def expired(write: PendingWrite) -> Answer:
    """Return the refusal of a call that came too late."""
    late = Expired(f"{write.kind.operation()} reached the database after its deadline; nothing was changed")
    return error_answer(late)
