"""Wait for a condition, never for a time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
DEADLINE = 60.0  # seconds, on a busy machine


def wait_until(condition: Callable[[], T], what: str = "the condition", *, seconds: float = DEADLINE) -> T:
    """Ask again and again until the answer is true, and return it; fail after a deadline.

    Args:
        condition: What is asked.
        what: Its name, for the failure's message.
        seconds: Until the deadline.
    """
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds:g} s"
        time.sleep(0.002)
    return answer
