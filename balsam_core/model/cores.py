"""Lists of processors, as Linux writes them: ``0,2,8-11``."""

from __future__ import annotations

from balsam_core.errors import InvalidInput

__all__ = ["check_affinity", "parse_cores"]

MOST_CORES = 8192  # Linux has no more


def parse_cores(text: str) -> tuple[int, ...]:
    """Return the numbers in a list of processors.

    Raises:
        InvalidInput: It is no such list.
    """
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidInput(f"{text!r} is no list of processors such as 0,2,8-11")
        numbers = range(int(first[:9]), int(last[:9] if dash else first[:9]) + 1)
        if not numbers or numbers[-1] >= MOST_CORES:
            raise InvalidInput(f"{part.strip()!r} in {text!r} is no range of processors below {MOST_CORES}")
        cores.update(numbers)
    return tuple(sorted(cores))


def check_affinity(field: str, value: str) -> None:
    """Raise InvalidInput where a job's ``cpu_affinity`` is neither ``none``, ``depth`` nor a list of processors."""
    if value not in {"", "none", "depth"}:
        try:
            parse_cores(value)
        except InvalidInput as err:
            raise InvalidInput(f"{field}: {err}; write none, depth or such a list") from None
