"""Choosing jobs on the command line: ``12``, ``12-20``, ``1,3``, ``last``, ``all``, ``wf:NAME``, ``-``.

:func:`parse` makes a :class:`Selection` of the words; :func:`choose` makes conditions of it, each small enough for one
call.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from balsam_core.cli.text import quote
from balsam_core.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from balsam_core.client.database import Database
    from balsam_core.client.jobs import JobQuery
    from balsam_core.model.filters import Condition

HELP = "A selector is an id (12), a range (12-20), a list (1,3), last, all, wf:NAME, or - for ids from stdin."
HIGHEST = 2**63 - 1
MOST_IDS = 100_000  # in one condition
SLICE = 500  # ids or ranges in one condition, so that every database takes it in one statement
MOST_SHOWN = 5  # missing ids that a message names


class Selection(NamedTuple):
    """What the words mean, before the database is asked.

    Attributes:
        ids: Jobs named one by one; each must exist.
        ranges: First and last id of each range; a gap in a range is no error.
        workflows: Names of workflows.
        last: Whether the newest job is meant.
        everything: Whether all jobs are meant.
    """

    ids: frozenset[int] = frozenset()
    ranges: tuple[tuple[int, int], ...] = ()
    workflows: tuple[str, ...] = ()
    last: bool = False
    everything: bool = False


class Chosen:
    """The chosen jobs in a database.

    Attributes:
        conditions: Each small enough for one call; a job is chosen that meets one of them.
    """

    def __init__(self, jobs: JobQuery, conditions: Iterable[Condition]) -> None:
        self.conditions = list(conditions)
        self._jobs = jobs

    def count(self) -> int:
        """Count the jobs."""
        return sum(self._jobs.where(condition).count() for condition in self.conditions)

    def ids(self) -> list[int]:
        """Read the ids, each once, in their order."""
        return sorted({job for condition in self.conditions for job in self._jobs.where(condition).ids()})


def parse(words: Iterable[str]) -> Selection:
    """Return what selectors mean; ``-`` reads stdin.

    Raises:
        click.UsageError: A word is no selector.
    """
    ids: set[int] = set()
    ranges: list[tuple[int, int]] = []
    workflows: list[str] = []
    last = everything = False
    for word in words:
        if word.startswith("wf:"):  # a workflow's name may hold commas
            if word == "wf:":
                raise click.UsageError("the selector 'wf:' names no workflow: write wf:NAME")
            workflows.append(word[3:])
            continue
        for part in _read_stdin() if word == "-" else word.split(","):
            if part == "last":
                last = True
            elif part == "all":
                everything = True
            else:
                first, final = _parse_range(part)
                if "-" in part:
                    ranges.append((first, final))
                else:
                    ids.add(first)
    return Selection(frozenset(ids), tuple(ranges), tuple(workflows), last, everything)


def _read_stdin() -> Iterator[str]:
    for line in sys.stdin:
        yield from line.replace(",", " ").split()


def _parse_range(part: str) -> tuple[int, int]:
    """Return the first and last id of ``12`` or ``12-20``."""
    shown = quote(part)
    match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
    if not match:
        raise click.UsageError(f"{shown} is no selector: write 12, 12-20, 1,3, last, all, wf:NAME or -")
    head, tail = match[1], match[2] or match[1]
    if max(len(head), len(tail)) > len(str(HIGHEST)) or int(tail) > HIGHEST:
        raise click.UsageError(f"{shown} is no job id: the number is too large")
    first, final = int(head), int(tail)
    if first < 1:
        raise click.UsageError(f"{shown} is no job id: ids begin at 1")
    if final < first:
        raise click.UsageError(f"the range {shown} is empty: its end comes before its beginning")
    return first, final


def choose(db: Database, selection: Selection) -> Chosen:
    """Return the chosen jobs.

    Raises:
        NotFound: An id, a workflow or a whole range has no job; nothing is chosen then.
    """
    from balsam_core.model.filters import AllOf

    if selection.everything:
        return Chosen(db.jobs, [AllOf([])])
    ids = set(selection.ids)
    if selection.last:
        ids.add(_last_id(db))
    for name in selection.workflows:
        check_workflow(db, name)
    for first, final in selection.ranges:
        if not db.jobs.where(_id_range(first, final)).limit(1).ids():
            raise NotFound(f"there are no jobs {first}-{final}")
    check_exist(db, selection.ids)
    return Chosen(db.jobs, _make_conditions(ids, selection))


def choose_one(db: Database, word: str) -> int:
    """Return the id of the one job that a selector means.

    Raises:
        NotFound: There is no such job.
        click.UsageError: The word is no selector, or means several jobs.
    """
    selection = parse([word])
    if selection.last:
        return _last_id(db)
    if len(selection.ids) == 1 and not (selection.ranges or selection.workflows or selection.everything):
        return next(iter(selection.ids))
    raise click.UsageError(f"{word!r} does not name one job: give an id or 'last'")


def _last_id(db: Database) -> int:
    from balsam_core.model.calls import LastJob

    last = db.run(LastJob())
    if last is None:
        raise NotFound("there are no jobs yet")
    return last


def _id_range(first: int, final: int) -> Condition:
    from balsam_core.model.filters import AllOf, Compare

    return AllOf([Compare("id", "ge", first), Compare("id", "le", final)])


def _make_conditions(ids: set[int], selection: Selection) -> Iterator[Condition]:
    """Give conditions that together are the selection; they may overlap."""
    from balsam_core.model.filters import AnyOf, Compare

    parts: list[Condition] = [Compare("workflow", "eq", name) for name in selection.workflows]
    parts += [_id_range(*both) for both in selection.ranges]
    ordered = sorted(ids)
    parts += [Compare("id", "in", ordered[at : at + MOST_IDS]) for at in range(0, len(ordered), MOST_IDS)]
    if 1 < len(parts) <= SLICE and len(ordered) <= MOST_IDS:
        yield AnyOf(parts)  # one query: a job chosen twice counts once, and each knows which others are chosen
    else:
        yield from parts


def check_workflow(db: Database, name: str) -> None:
    """Check that a workflow has jobs.

    Raises:
        NotFound: It has none.
    """
    if not db.jobs.where(workflow=name).limit(1).ids():
        raise NotFound(f"there are no jobs in workflow {name!r}; 'balsam ls wf' lists the workflows")


def check_exist(db: Database, ids: Iterable[int]) -> None:
    """Check that each id names a job.

    Raises:
        NotFound: Some don't; the message names the first of them.
    """
    from balsam_core.model.filters import Compare

    ordered = sorted(ids)
    missing: list[int] = []
    for at in range(0, len(ordered), SLICE):
        some = ordered[at : at + SLICE]
        there = set(db.jobs.where(Compare("id", "in", some)).ids())
        missing += [job for job in some if job not in there]
    if missing:
        names = ", ".join(map(str, missing[:MOST_SHOWN])) + (", ..." if len(missing) > MOST_SHOWN else "")
        raise NotFound(f"there is no job {names}" if len(missing) == 1 else f"there are no jobs {names}")
