"""Two transactions interleaved at every point: the first stops before each of its statements in turn.

While it stops, the second runs to its end, or until it waits for a lock of the first. Nothing here names a statement,
so that every way to do the same thing is tried alike. After each round all that is stored must agree with itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import sqlalchemy as sa
from plugin_dbs import open_transport

from balsam_core.client.jobs import Jobs
from balsam_core.errors import BalsamError
from balsam_core.model import calls
from balsam_core.model.calls import Resources, Update
from balsam_core.model.states import ACTIVE, UNSUCCESSFUL, State, first_illegal_transition
from balsam_core.schema.tables import counters, job_edges, job_events, jobs, launchers, staged_inserts
from balsam_core.testing.tools import DONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from balsam_core import Job
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.transport.base import Transport

__all__ = ["DEADLINE", "FAIL", "Scene", "World"]

FAIL = (State.STAGED_IN, State.PREPROCESSED, State.RUNNING, State.RUN_ERROR, State.FAILED)
DEADLINE = 60.0  # seconds, on a busy machine
BLOCKED = 0.2  # seconds after which the second is taken to wait for the first; if it doesn't, the round is another one


class Scene(NamedTuple):
    """Two things that happen at once, and what must be true afterwards of their answers (or errors)."""

    first: Callable[[Transport], Any]
    second: Callable[[Transport], Any]
    check: Callable[[Any, Any], None]


class World:
    """A DB with two clients; ``run`` and ``jobs`` are for preparing and for looking. All use the plugin's transport."""

    def __init__(self, db: DBDir) -> None:
        self._stop = _Stop()
        self._plain = open_transport(db)
        self._others = [open_transport(db) for _ in range(2)]
        self._stop.watch(self._others[0].engine)
        self.run = self._plain.run
        self.engine = self._plain.engine
        self.jobs = Jobs(self._plain)
        for transport in self._others:
            transport.run(calls.GetInfo())  # the schema is looked at once, the clock now and then

    def close(self) -> None:
        """Close all connections."""
        for transport in (self._plain, *self._others):
            transport.close()

    # ---- preparing

    def launcher(self, *, lease: float = 900.0) -> int:
        """Register a launcher; with a negative lease, one whose lease is over."""
        return self.run(register(lease))

    def held(self, *added: Job) -> int:
        """Return a launcher that has claimed these jobs, for the first time."""
        me = self.launcher()
        claim = calls.ClaimJobs(launcher=me, limit=100, resources=Resources(), only=[job.id or 0 for job in added])
        assert len(self.run(claim).jobs) == len(added)
        return me

    def batch(self, *added: Job, publish: bool = False) -> int:
        """Add jobs to a batch and return its number."""
        batch = self.run(calls.OpenStagedInsert())
        self.run(calls.AddJobs(jobs=list(added), staged_insert=batch))
        if publish:
            self.run(calls.PublishStagedInsert(staged_insert=batch))
        return batch

    def promote(self) -> None:
        """Promote all that is published."""
        while self.run(calls.PromoteStagedInsert()):
            pass

    def state(self, job: Job) -> State:
        """Return the state of a job."""
        return self.jobs.get(job.id or 0).state

    def ends(self, job: Job) -> int:
        """Count the events by which a job failed."""
        return sum(
            transition == State.FAILED for event in self.jobs.history(job) for transition, _ in event.transitions
        )

    # ---- playing

    def play(self, build: Callable[[World], Scene], *, swapped: bool = False) -> None:
        """Play a scene until the first has been stopped at each of its statements, and once one after the other."""
        for number in range(1, 200):
            _wipe(self.engine)
            scene = build(self)
            first, second = (scene.second, scene.first) if swapped else (scene.first, scene.second)
            place, answers = self._round(first, second, number)
            try:
                scene.check(*(reversed(answers) if swapped else answers))
                with self.engine.connect() as conn:
                    _assert_sound(conn)
            except BaseException as err:
                order = "the second was stopped and the first ran" if swapped else "the first was stopped"
                err.add_note(f"{order}; stopped before statement {number}: {place or 'none: one after the other'}")
                err.add_note(f"their answers: {answers!r}")
                raise
            if not place:
                return
        msg = "it never ends"
        raise AssertionError(msg)

    def _round(
        self, first: Callable[[Transport], Any], second: Callable[[Transport], Any], number: int
    ) -> tuple[str, list[Any]]:
        with _Run(first, self._others[0]) as one, self._stop.before(number, one):
            place = self._stop.place if self._stop.wait(one) else ""
            with _Run(second, self._others[1]) as other:
                other.start()
                other.done.wait(BLOCKED if place else DEADLINE)
                self._stop.go.set()
        return place, [one.answer, other.answer]


class _Run:
    """Something that runs in a thread of its own; leaving waits for its end."""

    def __init__(self, what: Callable[[Transport], Any], transport: Transport) -> None:
        self.done = threading.Event()
        self.answer: Any = None
        self._fault: BaseException | None = None
        self._what, self._transport = what, transport
        self.thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        self.thread.start()

    def _work(self) -> None:
        try:
            self.answer = self._what(self._transport)
        except BalsamError as err:
            self.answer = err
        except BaseException as err:  # noqa: BLE001  (it is raised again at the end)
            self._fault = err
        self.done.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        assert self.done.wait(DEADLINE), "it hangs"
        if self._fault:
            raise self._fault


class _Stop:
    """Stops one thread before a statement, or the COMMIT, that it sends to the database."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._left = 0
        self._reached = threading.Event()
        self.go = threading.Event()
        self.place = ""

    @contextlib.contextmanager
    def before(self, number: int, run: _Run) -> Iterator[None]:
        """Start and stop a run before its statement of this number."""
        self._thread, self._left = run.thread, number
        self._reached.clear()
        self.go.clear()
        try:
            run.start()
            yield
        finally:
            self.go.set()

    def wait(self, run: _Run) -> bool:
        """Wait until the run has stopped, or has ended without."""
        while not run.done.wait(0.001):
            if self._reached.is_set():
                return True
        return self._reached.is_set()

    def pass_by(self, statement: str) -> None:
        """Be told of a statement before it is sent."""
        if threading.current_thread() is not self._thread:
            return
        self._left -= 1
        if self._left == 0:
            self.place = statement
            self._reached.set()
            assert self.go.wait(DEADLINE), "nobody lets it go on"

    def watch(self, engine: Engine) -> None:
        """Let all statements of an engine pass by, whoever sends them."""
        stop = self

        @sa.event.listens_for(engine, "connect")
        def connect(connection: Any, _record: object) -> None:
            name = "cursor_factory" if hasattr(connection, "cursor_factory") else "cursorclass"
            plain = getattr(connection, name)

            class Stopping(plain):  # type: ignore[misc,valid-type]
                def execute(self, query: Any, *more: Any, **options: Any) -> Any:
                    stop.pass_by(str(query))
                    return super().execute(query, *more, **options)

                def executemany(self, query: Any, *more: Any, **options: Any) -> Any:
                    stop.pass_by(str(query))
                    return super().executemany(query, *more, **options)

                def copy(self, statement: Any, *more: Any, **options: Any) -> Any:
                    stop.pass_by(str(statement))
                    return super().copy(statement, *more, **options)

            setattr(connection, name, Stopping)

        @sa.event.listens_for(engine, "commit")
        def commit(_conn: Connection) -> None:
            stop.pass_by("COMMIT")


def _wipe(engine: Engine) -> None:
    with engine.begin() as conn:
        for table in (job_edges, job_events, jobs, staged_inserts, launchers):
            conn.execute(table.delete())
        for name in ("jobs", "launchers", "staged_inserts"):  # so that no round is the first to count
            if not conn.execute(
                counters.update().where(counters.c.name == name).values(last=counters.c.last + 1)
            ).rowcount:
                conn.execute(counters.insert().values(name=name, last=1))


def _assert_sound(conn: Connection) -> None:
    """Assert that jobs, their history, their parents and their launchers agree."""
    open_inserts = set(conn.execute(sa.select(staged_inserts.c.id)).scalars())
    ended = {row.id: row.ended_at for row in conn.execute(sa.select(launchers))}
    rows = {row.id: row for row in conn.execute(sa.select(jobs)) if row.staged_insert_id not in open_inserts}
    path: dict[int, list[State]] = defaultdict(list)
    times: dict[int, list[datetime]] = defaultdict(list)
    for job, at, transitions in conn.execute(
        sa.select(job_events.c.job_id, job_events.c.at, job_events.c.transitions).order_by(job_events.c.id)
    ):
        parts = [part.split(" ") for part in transitions.split(", ") if part]
        path[job] += [State(state) for state, _ in parts]
        times[job] += [at - timedelta(seconds=float(age)) for _, age in parts]
    parents: dict[int, list[int]] = defaultdict(list)
    for parent, child in conn.execute(sa.select(job_edges.c.parent_id, job_edges.c.child_id)):
        parents[child].append(parent)
    for number, row in rows.items():
        state, transitions = State(row.state), path[number]
        told = (
            f"job {number} is {state}, held by {row.launcher_id}, class {row.claim_class}; its history: {transitions}"
        )
        assert transitions, told
        assert first_illegal_transition(transitions[0], transitions[1:]) is None, f"an impossible history: {told}"
        assert transitions[-1] == state, f"its history ends otherwise: {told}"
        assert sorted(times[number]) == times[number], f"its history goes back in time ({times[number]}): {told}"
        assert abs(times[number][-1] - row.state_since) < timedelta(seconds=1e-5), f"state_since is another: {told}"
        if row.launcher_id is not None:
            assert ended[row.launcher_id] is None, f"held by a launcher that has ended: {told}"
        waits_for_launcher = state in ACTIVE - {State.CREATED, State.AWAITING_PARENTS} and row.launcher_id is None
        assert row.claim_class == (row.resource_class_id if waits_for_launcher else None), f"claimable or not? {told}"
        assert all(parent in rows for parent in parents[number]), f"a parent is gone: {told}"
        states = [State(rows[parent].state) for parent in parents[number]]
        if state in {State.AWAITING_PARENTS, State.READY} and row.wait_for_parents:
            unfinished = sum(one != State.JOB_FINISHED for one in states)
            assert row.parents_left == unfinished, f"{row.parents_left} parents left, not {unfinished}: {told}"
            assert (state == State.AWAITING_PARENTS) == (unfinished > 0), told
            assert not set(states) & set(UNSUCCESSFUL), f"it waits for a lost parent: {told}"


# ---- calls


def register(lease: float = 900.0) -> calls.RegisterLauncher:
    """Return the call that registers a launcher."""
    return calls.RegisterLauncher(host="h", pid=1, boot_id="b", process_start=0.0, lease_seconds=lease)


def end(launcher: int, job: Job, *transitions: State) -> calls.UpdateJobs:
    """Return the call that records the end of a job of the first attempt; by default it finishes."""
    told = Update(job=job.id or 0, attempt=1, transitions=[(transition, 0.0) for transition in transitions or DONE])
    return calls.UpdateJobs(launcher=launcher, updates=[told])
