"""Judges a run of ``random_faults.py``: compares journals, the jobs' own log, a database and its backups.

The rules are functions from :class:`Evidence` to a list of what is wrong; a rule's name is the kind of the fault. They
read nothing and judge nothing by speed, so that each is tested on journals written by hand.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.model.states import END, UNSUCCESSFUL, State, first_illegal_transition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from balsam_core import Database
    from balsam_core.model.calls import Event

UNKNOWN = {None, "outcome-unknown", "partly-done", "killed"}
"""Errors of calls that may have taken effect; after any other one nothing was changed."""

HISTORY_PAGE = 1000  # jobs


# ------------------------------------------------------------------------------------------------------------ evidence


@dataclass
class Call:
    """One call of a writer, from its journal. Times are the machine's monotonic clock.

    Attributes:
        kind: add, kill or retry.
        names: The jobs.
        answer: Ids of added jobs; how many were killed or retried. None without an answer.
        error: The error's code; None for an answer, and where the client died first.
    """

    kind: str
    names: list[str]
    sent: float
    job: int = 0
    ended: float | None = None
    answer: list[int] | int | None = None
    error: str | None = None

    @property
    def acked(self) -> bool:
        """Whether it was acknowledged."""
        return self.answer is not None

    @property
    def unknown(self) -> bool:
        """Whether it may have taken effect or not."""
        return not self.acked and self.error in UNKNOWN


class Row(NamedTuple):
    """A stored job."""

    id: int
    name: str
    state: State
    attempt: int = 0
    parents: Sequence[int] = ()


class Line(NamedTuple):
    """A line that a job wrote to the log of all jobs. A run is told by launcher and process.

    Attributes:
        what: ``start``, ``end`` (it has done all), ``failed`` or ``stopped`` (by its launcher).
    """

    what: str
    job: int
    launcher: int
    pid: int


@dataclass
class Evidence:
    """All that is known of a run.

    Attributes:
        calls: All calls of all writers.
        rows: The stored jobs.
        events: The stored history, each job's oldest first.
        lines: What the jobs wrote, in the order of writing.
        began: For a backup, when it began; None for the database at the end.
    """

    calls: list[Call]
    rows: list[Row]
    events: list[Event] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    began: float | None = None

    def __post_init__(self) -> None:
        self.by_name: defaultdict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            self.by_name[row.name].append(row)
        self.history: defaultdict[int, list[Event]] = defaultdict(list)
        for event in self.events:
            self.history[event.job_id].append(event)

    def stored(self, call: Call) -> int:
        """Count the jobs of a call that are stored."""
        return sum(bool(self.by_name.get(name)) for name in call.names)

    def adds(self) -> Iterator[Call]:
        """Give the calls that add jobs."""
        return (call for call in self.calls if call.kind == "add")

    def was_before(self, call: Call) -> bool:
        """Say whether a call was acknowledged, and before a backup began."""
        return call.acked and (self.began is None or call.ended < self.began)

    def states(self, job: int) -> list[State]:
        """Return all the states of a job, in the order of its history."""
        return [state for event in self.history.get(job, ()) for state, _ in event.transitions]


def read_journal(path: Path) -> list[Call]:
    """Return the calls of a journal; a last line that is cut short is left out."""
    calls: dict[int, Call] = {}
    for text in path.read_text().splitlines(keepends=True) if path.exists() else ():
        if not text.endswith("\n"):
            break
        line = json.loads(text)
        if "kind" in line:
            calls[line["call"]] = Call(line["kind"], line["names"], line["at"], line.get("job", 0))
            continue
        call = calls[line["call"]]
        call.ended, call.answer, call.error = line["at"], line.get("answer"), line.get("error")
    return list(calls.values())


def read_log(path: Path) -> list[Line]:
    """Return what the jobs wrote; a last line that is cut short is left out."""
    lines = [line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Line(what, *map(int, numbers)) for what, *numbers in lines]


def read_database(db: Database) -> tuple[list[Row], list[Event]]:
    """Return all jobs of an open DB, and their history."""
    rows = [Row(job.id, job.name, State(job.state), job.attempt, tuple(job.parents)) for job in db.jobs]
    events: list[Event] = []
    for start in range(0, len(rows), HISTORY_PAGE):
        events += db.jobs.history(*[row.id for row in rows[start : start + HISTORY_PAGE]])
    return rows, events


# --------------------------------------------------------------------------------------------------------------- rules


def lost(e: Evidence) -> list[str]:
    """What was acknowledged is stored: jobs, kills and retries."""
    found = [
        f"{call.names} {call.answer}" for call in e.adds() if e.was_before(call) and e.stored(call) < len(call.names)
    ]
    for kind, count in (("kill", _kills), ("retry", _retries)):
        acked = Counter(call.job for call in e.calls if call.kind == kind and e.was_before(call) and call.answer)
        found += [f"{kind} of job {job}" for job, wanted in acked.items() if count(e, job) < wanted]
    return found


def doubled(e: Evidence) -> list[str]:
    """Nothing took effect twice: no job is there twice, none was killed more often than asked."""
    found = [f"{name}: {rows}" for name, rows in e.by_name.items() if len(rows) > 1]
    kills = Counter(call.job for call in e.calls if call.kind == "kill" and (call.answer or call.unknown))
    return found + [f"kill of job {job}" for job in e.history if _kills(e, job) > kills[job]]


def torn(e: Evidence) -> list[str]:
    """A call's jobs are all there or none."""
    return [str(call.names) for call in e.adds() if 0 < e.stored(call) < len(call.names)]


def denied(e: Evidence) -> list[str]:
    """Nothing is stored of which an error said that nothing was changed."""
    return [f"{call.names} {call.error}" for call in e.adds() if not call.acked and not call.unknown and e.stored(call)]


def misnumbered(e: Evidence) -> list[str]:
    """Each acknowledged id is the stored one, and no id was given twice."""
    told = [(name, job) for call in e.adds() if call.acked for name, job in zip(call.names, call.answer, strict=True)]
    twice = [f"id {job}" for job, times in Counter(job for _, job in told).items() if times > 1]
    other = [f"{name}: {job}" for name, job in told if e.by_name.get(name) and e.by_name[name][0].id != job]
    return twice + other


def unsent(e: Evidence) -> list[str]:
    """Nothing is stored that nobody sent."""
    return sorted(e.by_name.keys() - {name for call in e.adds() for name in call.names})


def not_a_prefix(e: Evidence) -> list[str]:
    """What was acknowledged before a stored job was sent is stored, too."""
    newest = max((call.sent for call in e.adds() if e.stored(call)), default=0.0)
    before = (call for call in e.adds() if call.acked and call.ended < newest)
    return [str(call.names) for call in before if not e.stored(call)]


def back_in_history(e: Evidence) -> list[str]:
    """Each history goes on by allowed transitions and attempts, from CREATED to the job's state."""
    found = []
    for row in e.rows:
        states = e.states(row.id)
        if not states or states[0] != State.CREATED or states[-1] != row.state:
            found.append(f"job {row.id} is {row.state}: {_shown(states)}")
        elif wrong := first_illegal_transition(states[0], states[1:]):
            found.append(f"job {row.id}: from {wrong[0]} to {wrong[1]}: {_shown(states)}")
    return found + _pairs(e, lambda earlier, later: later.attempt < earlier.attempt)


def back_in_time(e: Evidence) -> list[str]:
    """No event of a job has an earlier time than the one before."""
    return _pairs(e, lambda earlier, later: later.at < earlier.at)


def never_ran(e: Evidence) -> list[str]:
    """Each finished job has run to its end."""
    ran = {line.job for line in e.lines if line.what == "end"}
    return [f"job {row.id}" for row in e.rows if row.state == State.JOB_FINISHED and row.id not in ran]


def ran_at_once(e: Evidence) -> list[str]:
    """No two attempts of a job run at once, whatever became of the launchers; each attempt runs once."""
    found = _overlaps(e)
    for job, events in e.history.items():
        runs = Counter(event.attempt for event in events for state, _ in event.transitions if state == State.RUNNING)
        found += [f"job {job}: attempt {attempt} ran {n} times" for attempt, n in runs.items() if n > 1]
    return found


def before_parents(e: Evidence) -> list[str]:
    """No job starts before each of its parents has run to its end."""
    parents = {row.id: row.parents for row in e.rows}
    ended: set[int] = set()
    found = []
    for line in e.lines:
        if line.what == "end":
            ended.add(line.job)
        elif line.what == "start" and (missing := set(parents.get(line.job, ())) - ended):
            found.append(f"job {line.job} before {missing}")
    return found


def stuck(e: Evidence) -> list[str]:
    """When no launcher finds anything to do, each job has ended."""
    return [f"job {row.id} is {row.state}, parents {row.parents}" for row in e.rows if row.state not in END]


IN_A_BACKUP = [lost, doubled, torn, denied, misnumbered, unsent, not_a_prefix, back_in_history, back_in_time]
AT_THE_END = [*IN_A_BACKUP, never_ran, ran_at_once, before_parents, stuck]


def judge(e: Evidence, rules: Iterable[Callable[[Evidence], list[str]]]) -> dict[str, list[str]]:
    """Return what is wrong, by the names of the rules."""
    return {rule.__name__: found for rule in rules if (found := rule(e))}


def _kills(e: Evidence, job: int) -> int:
    return e.states(job).count(State.USER_KILLED)


def _retries(e: Evidence, job: int) -> int:
    return sum(before in UNSUCCESSFUL for before in e.states(job)[:-1])


def _overlaps(e: Evidence) -> list[str]:
    """Return the runs that went on after another run of the same job had started."""
    running: defaultdict[int, dict[Line, list[Line]]] = defaultdict(dict)  # what started since, by job and run
    found = []
    for line in e.lines:
        run = line._replace(what="")
        if line.what == "start":
            for since in running[line.job].values():
                since.append(line)
            running[line.job][run] = []
        elif since := running[line.job].pop(run, []):
            found.append(f"job {line.job}: of launcher {line.launcher} while of {[one.launcher for one in since]}")
    return found


def _pairs(e: Evidence, is_wrong: Callable[[Event, Event], bool]) -> list[str]:
    """Return the wrong ones among the pairs of events that follow each other in a job's history."""
    pairs = [pair for events in e.history.values() for pair in pairwise(events)]
    return [f"job {a.job_id}: {_shown_event(a)} before {_shown_event(b)}" for a, b in pairs if is_wrong(a, b)]


def _shown(states: Iterable[State]) -> str:
    return " ".join(states)


def _shown_event(event: Event) -> str:
    return f"[{event.at:%H:%M:%S.%f} attempt {event.attempt}: {_shown(state for state, _ in event.transitions)}]"
