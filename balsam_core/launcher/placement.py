"""Where jobs run on this node: which processors and which GPUs each one has.

A job takes ``ranks_per_node`` times the processors of a rank (its threads, ``threads_per_core`` of them on one), its
GPUs, and, with a ``node_packing_count`` of N, the N-th part of the node, so that at most N of its kind run on it.
Processors are numbered logical processors. Whole GPUs belong to one job; jobs that want a part of one share it. Both
may be shared with other launchers.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, inf
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.launcher.sharing import gpu_numbers, share_gpus, share_processors
from balsam_core.system.hardware import gpu_variables

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.launcher.sharing import Shared
    from balsam_core.model.job import Job

_MOST_NAMED = 3  # launchers in a message
_TINY = 1e-6  # of a GPU: three jobs of 0.333334 fit


class Need(NamedTuple):
    """What a job takes of a node.

    Attributes:
        ranks: Processes.
        cores_per_rank: Processors of each.
        gpus_per_rank: GPUs of each; a part of one below 1, else rounded up together.
        packing: Most jobs of its kind on the node; 0 for no limit.
    """

    ranks: int = 1
    cores_per_rank: int = 1
    gpus_per_rank: float = 0.0
    packing: int = 0

    @property
    def slots(self) -> int:
        """Processors of all its ranks."""
        return self.ranks * self.cores_per_rank

    @property
    def is_special(self) -> bool:
        """Whether it may have to wait though enough processors are free."""
        return bool(self.gpus_per_rank or self.packing)

    @classmethod
    def of(cls, job: Job) -> Need:
        """Return what a job needs on each of its nodes."""
        cores_per_rank = -(-job.threads_per_rank // job.threads_per_core)
        return cls(job.ranks_per_node, cores_per_rank, job.gpus_per_rank, job.node_packing_count)


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """What a job has been given.

    Attributes:
        slots: Numbers of its slots.
        cores: Numbers of its processors; two jobs have one in common only where there are more slots than processors.
        gpus: Names of its GPUs.
        share: Which part of the node its packing count takes.
        gpu_shares: The part that it takes of each GPU, by position.
        gpu_variables: The variables that tell its processes which GPUs are theirs.
    """

    slots: tuple[int, ...]
    cores: tuple[int, ...]
    gpus: tuple[str, ...] = ()
    share: Fraction | int = 0
    gpu_shares: tuple[tuple[int, float], ...] = ()
    gpu_variables: tuple[str, ...] = ()


class Node:
    """The processors and GPUs of a node, and which of them are free.

    Attributes:
        size: How many slots there are: processes of one processor that run at the same time.

    Args:
        cores: Numbers of the processors.
        slots: How many processes of one processor run at the same time; the processors by default. With more slots than
            processors they are shared.
        gpus: Names of the GPUs.
        most_jobs: How many jobs run at the same time, whatever they need; None for no limit.
        shared: The processors, where other launchers use them, too; there are as many slots.
        shared_gpus: The GPUs, where other launchers use them, too.
    """

    def __init__(
        self,
        cores: Sequence[int],
        *,
        slots: int = 0,
        gpus: Sequence[str] = (),
        most_jobs: int | None = None,
        shared: Shared | None = None,
        shared_gpus: Shared | None = None,
    ) -> None:
        self.size = slots or len(cores)
        self._cores = tuple(cores)
        self._gpus = tuple(gpus)
        self._gpu_variables = gpu_variables() if gpus else ()
        self._free = list(range(self.size))  # sorted
        self._free_gpus = [1.0] * len(gpus)
        self._used_share: Fraction | int = 0
        self._jobs = 0
        self._most_jobs = most_jobs
        self._shared = shared
        self._shared_gpus = shared_gpus
        self._gpu_numbers = gpu_numbers(gpus)

    @classmethod
    def of(cls, options: LauncherOptions, name: str) -> Node:
        """Return the node of a launcher, of which it may share things with others; these know it by a name."""
        return cls(
            options.cores,
            slots=options.slots,
            gpus=options.gpus,
            most_jobs=options.most_jobs,
            shared=share_processors(options.cores, name) if options.shares_cores else None,
            shared_gpus=share_gpus(options.gpus, name) if options.shares_gpus else None,
        )

    @property
    def descriptors(self) -> list[int]:
        """What the guardian keeps open, so that nobody takes what its jobs have before they have ended."""
        return [shared.descriptor for shared in (self._shared, self._shared_gpus) if shared is not None]

    @property
    def free_slots(self) -> int:
        """How many slots are free; none where no more jobs may run, and without those that are for other launchers."""
        if self._jobs == self._most_jobs:
            return 0
        if self._shared is None:
            return len(self._free)
        return int(min(len(self._available()), self._shared.allowance))

    @property
    def is_crowded_out(self) -> bool:
        """Whether only other launchers' jobs are the reason that no slot is free."""
        return self._shared is not None and bool(self._free) and not self.free_slots

    @property
    def waits(self) -> bool:
        """Whether a job waits for processors or GPUs that other launchers have."""
        return any(shared is not None and shared.waits for shared in (self._shared, self._shared_gpus))

    @property
    def waits_for(self) -> str:
        """What it waits for, for people; empty where it doesn't."""
        for what, shared in (("processors", self._shared), ("GPUs", self._shared_gpus)):
            if shared is not None and shared.waits:
                names = shared.used_by
                more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
                users = ", ".join(names[:_MOST_NAMED]) + more if names else "other launchers"
                return f"waiting for {what} that are used by {users}"
        return ""

    @property
    def free_gpus(self) -> float:
        """How many GPUs are free, with parts of shared ones, without those that are for other launchers."""
        left = self._gpus_left()
        whole = [one for one in left if one > 1 - _TINY]
        free = sum(left) - sum(whole) + min(len(whole), self._allowance_of_gpus)
        return free if free > _TINY else 0.0

    @property
    def own_free_gpus(self) -> float:
        """How many GPUs our own jobs leave free."""
        free = sum(self._free_gpus)
        return free if free > _TINY else 0.0

    @property
    def has_room_for_packed(self) -> bool:
        """Whether some job with a packing count may run beside those that do."""
        return self._used_share < 1

    @property
    def free_jobs(self) -> int:
        """How many more jobs may run at the same time."""
        return len(self._free) if self._most_jobs is None else self._most_jobs - self._jobs

    def take(self, need: Need) -> Place | None:
        """Give a job its place; None while too little is free.

        A job of more threads than there are processors gets all of them.
        """
        count = min(need.slots, self.size)
        share = Fraction(1, need.packing) if need.packing else 0
        if count > self.free_slots or self._used_share + share > 1:
            return None
        gpu_shares = self._find_gpus(need, self._gpus_left()) if need.gpus_per_rank else ()
        if gpu_shares is None or not self._lock_gpus(gpu_shares):
            return None
        slots = self._take_slots(count)
        if not slots:
            self._unlock_gpus(gpu_shares)
            return None
        for at, part in gpu_shares:
            self._free_gpus[at] -= part
        self._used_share += share
        self._jobs += 1
        cores = tuple(sorted({self._cores[slot % len(self._cores)] for slot in slots}))
        gpus = tuple(self._gpus[at] for at, _ in gpu_shares)
        return Place(slots, cores, gpus, share, gpu_shares, self._gpu_variables if gpus else ())

    def give_back(self, place: Place) -> None:
        """Free what a job had."""
        if self._shared is not None:
            self._shared.give_back(place.cores)
        self._free += place.slots
        self._free.sort()
        for at, part in place.gpu_shares:
            self._free_gpus[at] = min(1.0, self._free_gpus[at] + part)
        self._unlock_gpus(place.gpu_shares)
        self._used_share -= place.share
        self._jobs -= 1

    def look_around(self, wanted: Need | None) -> None:
        """Learn what other launchers have of the node, and tell them whether we wait for some of it.

        Args:
            wanted: What the first job needs that has not started; None for no such job.
        """
        if self._shared is not None:
            self._shared.look()
            count = min(wanted.slots, self.size) if wanted else 0
            self._shared.tell(waits=self.free_slots < count <= len(self._free))
        if self._shared_gpus is not None:
            self._shared_gpus.look()
            self._shared_gpus.tell(waits=wanted is not None and self._is_kept_from_gpus(wanted))

    def close(self) -> None:
        """Leave all to others: what jobs have that have not ended, when the guardian is gone."""
        for shared in (self._shared, self._shared_gpus):
            if shared is not None:
                shared.close()

    def _available(self) -> list[int]:
        """Return the free slots that are not for other launchers."""
        busy = self._shared.busy if self._shared is not None else 0
        return [slot for slot in self._free if not busy >> self._cores[slot] & 1] if busy else self._free

    def _take_slots(self, count: int) -> tuple[int, ...]:
        """Take free slots: neighbours where there are enough, since these share caches and memory.

        Where another launcher has just taken one of them, others are tried; none where these are too few.
        """
        while len(free := self._available()) >= count:
            last = len(free) - count
            at = next((at for at in range(last + 1) if free[at + count - 1] - free[at] == count - 1), 0)
            taken = tuple(free[at : at + count])
            if self._shared is None or self._shared.take(self._cores[slot] for slot in taken):
                self._free = [slot for slot in self._free if slot not in taken]
                return taken
        return ()

    @property
    def _allowance_of_gpus(self) -> float:
        return inf if self._shared_gpus is None else self._shared_gpus.allowance

    def _gpus_left(self) -> list[float]:
        """Return what is free of each GPU; nothing of those that are for other launchers."""
        busy = self._shared_gpus.busy if self._shared_gpus is not None else 0
        if not busy:
            return self._free_gpus
        numbers = self._gpu_numbers
        return [0.0 if busy >> number & 1 else left for number, left in zip(numbers, self._free_gpus, strict=True)]

    def _is_kept_from_gpus(self, need: Need) -> bool:
        """Say whether only other launchers' jobs are the reason that a job has no GPUs."""
        if not need.gpus_per_rank or self._find_gpus(need, self._free_gpus) is None:
            return False
        found = self._find_gpus(need, self._gpus_left())
        return found is None or len(self._untouched(found)) > self._allowance_of_gpus

    def _untouched(self, gpu_shares: Iterable[tuple[int, float]]) -> list[int]:
        """Return the numbers of those GPUs of which our jobs have no part."""
        return [self._gpu_numbers[at] for at, _ in gpu_shares if self._free_gpus[at] > 1 - _TINY]

    def _lock_gpus(self, gpu_shares: Sequence[tuple[int, float]]) -> bool:
        if self._shared_gpus is None or not gpu_shares:
            return True
        new = self._untouched(gpu_shares)
        return len(new) <= self._allowance_of_gpus and self._shared_gpus.take(new)

    def _unlock_gpus(self, gpu_shares: Sequence[tuple[int, float]]) -> None:
        if self._shared_gpus is not None and gpu_shares:
            self._shared_gpus.give_back(self._untouched(gpu_shares))

    def _find_gpus(self, need: Need, free: Sequence[float]) -> tuple[tuple[int, float], ...] | None:
        """Return which GPUs a job gets and what part of each; None while too little is free."""
        gpus_for_parts = ceil(need.ranks / floor(1 / need.gpus_per_rank + _TINY)) if need.gpus_per_rank < 1 else inf
        if gpus_for_parts > len(free):  # whole ones; so are parts that fit only if a rank may use two GPUs
            count = ceil(need.ranks * need.gpus_per_rank - _TINY)
            whole = [at for at, left in enumerate(free) if left > 1 - _TINY][:count]
            return tuple((at, 1.0) for at in whole) if len(whole) == count else None
        parts: dict[int, float] = {}
        for _ in range(need.ranks):
            left = [(amount - parts.get(at, 0.0), at) for at, amount in enumerate(free)]
            best = min((one for one in left if one[0] > need.gpus_per_rank - _TINY), default=None)
            if best is None:
                return None
            parts[best[1]] = parts.get(best[1], 0.0) + need.gpus_per_rank
        return tuple(sorted(parts.items()))
