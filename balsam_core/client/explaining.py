"""Why a job doesn't run, or how it ended, in words: the reason at the root, and the command that mends it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from math import floor
from typing import TYPE_CHECKING

from balsam_core.client.jobs import Jobs
from balsam_core.client.launchers import known_launchers
from balsam_core.client.slices import counted
from balsam_core.model.calls import GetBlockers
from balsam_core.model.states import UNSUCCESSFUL, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_core.client.launchers import KnownLauncher
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.launcher_journal import Offer
    from balsam_core.model.calls import Blockers, JobState
    from balsam_core.model.job import Job
    from balsam_core.transport.base import Transport

ANY_LAUNCHER = "balsam launcher --consume-all"
MOST_LAUNCHERS = 5  # that an explanation names
MOST_CAUSES = 5  # jobs that it names


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a job stands where it does.

    Attributes:
        job: The job's id.
        state: Its state.
        reason: One word: ``finished``, ``running``, ``claimed``, ``next``, ``created``, ``parents``, ``failed``,
            ``parent-failed``, ``killed``, ``parent-killed``, ``delayed``, ``parked``, ``no-launcher``,
            ``not-selected``, ``resources``, ``time-left``, ``launcher-dead``, ``launcher-silent``.
        lines: The same in sentences.
        jobs: The ids of the first jobs that it is because of.
        fix: The command that mends it; empty where nothing is to be done.
    """

    job: int
    state: State
    reason: str
    lines: tuple[str, ...]
    jobs: tuple[int, ...] = ()
    fix: str = ""

    def __str__(self) -> str:
        return "\n".join([*self.lines, f"Fix: {self.fix}"] if self.fix else self.lines)


def explain(transport: Transport, directory: DBDir, job: int) -> Explanation:
    """Explain why a job stands where it does. Takes a few queries, however many jobs there are.

    Raises:
        NotFound: There is no such job.
    """
    explainer = _Explainer(transport, directory)
    return explainer.explain(explainer.jobs.get(job))


class _Explainer:
    """Explains jobs; the launchers are read once."""

    def __init__(self, transport: Transport, directory: DBDir) -> None:
        self.jobs = Jobs(transport)
        self._transport = transport
        self._directory = directory

    def explain(self, job: Job) -> Explanation:
        """Explain one job."""
        if job.state is State.JOB_FINISHED:
            return _made(job, "finished", f"job {job.id} has finished, at {_clock(job.state_since)}")
        if job.launcher_id is not None:
            return self._explain_held(job, job.launcher_id)
        blockers = self._transport.run(GetBlockers(job=job.id or 0, limit=MOST_CAUSES))
        if job.state in UNSUCCESSFUL:
            return self._explain_ended_by(job, blockers) if blockers.causes else self._explain_ended(job)
        if job.state is State.AWAITING_PARENTS and blockers.causes:
            return self._explain_waiting(job, blockers)
        if job.not_before is not None:
            return self._explain_delayed(job)
        return self._explain_claimable(job) if blockers.claimable else self._explain_parked(job, staged=blockers.staged)

    @cached_property
    def _launchers(self) -> list[KnownLauncher]:
        return known_launchers(self._transport, self._directory)

    def _last_message(self, job: Job) -> str:
        """Return the newest message in a job's history."""
        messages = [event.message for event in self.jobs.history(job) if event.message]
        return messages[-1] if messages else ""

    # ---- because of other jobs

    def _explain_waiting(self, job: Job, blockers: Blockers) -> Explanation:
        parents = _listed(blockers.parents, blockers.parent_count)
        lines = [
            f"job {job.id} waits for {blockers.parent_count} of its {counted(len(job.parents), 'parent')}: {parents}"
        ]
        if blockers.causes != blockers.parents:
            causes = _listed(blockers.causes, blockers.cause_count)
            lines.append(f"all of them wait in the end for {counted(blockers.cause_count, 'job')}: {causes}")
        first = self.explain(self.jobs.get(blockers.causes[0].id))
        ids = [one.id for one in blockers.causes]
        return _made(job, "parents", *lines, *first.lines, jobs=ids, fix=first.fix)

    def _explain_ended_by(self, job: Job, blockers: Blockers) -> Explanation:
        ids = [one.id for one in blockers.causes]
        first = self._explain_ended(self.jobs.get(ids[0]))
        reason, how = ("parent-failed", "failed") if job.state is State.FAILED else ("parent-killed", "was ended")
        count = counted(blockers.cause_count, "job")
        lines = [
            f"job {job.id} {how} because of {count}: {_listed(blockers.causes, blockers.cause_count)}",
            *first.lines,
        ]
        fix = "balsam ls --root-failures"
        if blockers.cause_count == len(ids):
            fix = f"balsam retry {','.join(map(str, [*ids, job.id]))}"
        return _made(job, reason, *lines, jobs=ids, fix=fix)

    # ---- because of itself

    def _explain_ended(self, job: Job) -> Explanation:
        reason, how = ("failed", "has failed") if job.state is State.FAILED else ("killed", "was killed")
        lines = [f"job {job.id} {how}, at {_clock(job.state_since)}{_because(self._last_message(job))}"]
        if job.attempt:
            lines.append(f"'balsam log {job.id}' shows what it printed")
        return _made(job, reason, *lines, fix=f"balsam retry {job.id}")

    def _explain_delayed(self, job: Job) -> Explanation:
        text = (
            f"job {job.id} waits until {_clock(job.not_before)} for its retry {job.retries} of {job.max_retries}"
            f"{_because(self._last_message(job))}"
        )
        is_cared_for = any(one.runs for one in self._launchers)
        return _made(job, "delayed", text, fix="" if is_cared_for else _launcher_for(job, ""))

    def _explain_parked(self, job: Job, *, staged: bool) -> Explanation:
        if staged or job.state is State.CREATED:
            text = f"job {job.id} is being added, or its program has ended too early: launchers look for such jobs"
            return _made(job, "created", text, fix=ANY_LAUNCHER)
        text = f"job {job.id} is {job.state}, but no launcher may take it{_because(self._last_message(job))}"
        return _made(job, "parked", text, fix=f"balsam kill {job.id} && balsam retry {job.id}")

    # ---- because of launchers

    def _explain_held(self, job: Job, holder: int) -> Explanation:
        known = next((one for one in self._launchers if one.info.id == holder), None)
        if known is None:
            text = f"job {job.id} is {job.state} and held by launcher {holder}, which has ended: the next one frees it"
            return _made(job, "launcher-dead", text, fix=ANY_LAUNCHER)
        name = f"launcher {holder} (pid {known.info.pid} on {known.info.host})"
        if known.condition != "alive":
            reason = "launcher-silent" if known.condition == "silent" else "launcher-dead"
            text = f"job {job.id} is {job.state} and held by {name}, {_absence(known)}"
            return _made(job, reason, text, fix=ANY_LAUNCHER)
        if job.state in UNSUCCESSFUL:
            return _made(job, "killed", f"job {job.id} was killed, and {name} ends its processes now")
        if job.state is State.RUNNING:
            return _made(job, "running", f"job {job.id} runs since {_clock(job.state_since)}, by {name}")
        text = f"job {job.id} is {job.state}, and {name} starts it, or goes on with it, as soon as cores are free"
        return _made(job, "claimed", text)

    def _explain_claimable(self, job: Job) -> Explanation:
        needs = _needs(job)
        lines = [f"job {job.id} is {job.state}: it can run{f' where there are {needs}' if needs else ''}"]
        candidates = [one for one in self._launchers if one.runs]
        if not candidates:
            lines.append("no launcher is alive")
            lines += [
                f"launcher {one.info.id} (pid {one.info.pid} on {one.info.host}) is dead" for one in self._launchers
            ]
            return _made(job, "no-launcher", *lines[: MOST_LAUNCHERS + 2], fix=_launcher_for(job, needs))
        obstacles = [(one.info.id, *_obstacle(job, one)) for one in candidates]
        takers = [launcher for launcher, reason, _ in obstacles if not reason]
        if takers:
            lines.append(f"launcher {takers[0]} takes it as soon as cores are free and no job comes before it")
            return _made(job, "next", *lines)
        lines += [f"launcher {launcher} does not take it: {text}" for launcher, _, text in obstacles[:MOST_LAUNCHERS]]
        if len(obstacles) > MOST_LAUNCHERS:
            lines.append(f"nor do {len(obstacles) - MOST_LAUNCHERS} other launchers")
        # The launcher that comes nearest decides.
        order = ("time-left", "resources", "not-selected")
        reason = min((reason for _, reason, _ in obstacles), key=order.index)
        return _made(job, reason, *lines, fix=_launcher_for(job, needs if reason == "resources" else ""))


def _absence(known: KnownLauncher) -> str:
    """Return what is known of a launcher that doesn't renew its lease."""
    info = known.info
    until = "" if info.lease_until is None else f", at {_clock(info.lease_until)} at the latest"
    if known.condition == "dead":
        return f"whose process is gone: the next launcher takes the job over{until}"
    seen = f"which was last heard of at {_clock(info.seen_at)}"
    if known.condition == "expired":
        return f"{seen}: the next launcher takes the job over"
    return f"{seen}: if it is dead, the next launcher takes the job over{until}"


def _obstacle(job: Job, known: KnownLauncher) -> tuple[str, str]:
    """Return why a launcher will not take a job: one word and a text, both empty where nothing is known against it."""
    offer, workflow = known.offer, known.info.workflow
    if workflow and workflow != job.workflow:
        return "not-selected", f"it runs jobs of workflow {workflow!r} only, and this one is in {job.workflow!r}"
    if offer is None:
        return "", ""
    if offer.only is not None and job.id not in offer.only:
        return "not-selected", "it runs the jobs of its job file only"
    if short := _shortages(job, offer):
        return "resources", f"the job needs {' and '.join(short)}"
    if offer.ends_at is not None:
        left = max(0, floor((offer.ends_at - datetime.now(UTC)).total_seconds() / 60))
        if job.wall_time_minutes > left:
            return "time-left", f"the job may take {job.wall_time_minutes} minutes, and it ends in {left}"
    return "", ""


def _shortages(job: Job, offer: Offer) -> list[str]:
    """Return what a job needs more of than a launcher can give one job."""
    pairs = [
        (job.num_nodes, offer.nodes, "node", ""),
        (job.ranks_per_node, offer.ranks_per_node, "rank", " on each node"),
        (job.gpus_per_rank * job.ranks_per_node, offer.gpus_per_node, "GPU", " on each node"),
    ]
    return [
        f"{needed:g} {what}{'' if needed == 1 else 's'}{where} (it has {there:g})"
        for needed, there, what, where in pairs
        if needed > there
    ]


def _needs(job: Job) -> str:
    """Return what a job needs more of than the plainest one; empty for nothing."""
    gpus = job.gpus_per_rank * job.ranks_per_node
    parts = [counted(job.num_nodes, "node")] if job.num_nodes > 1 else []
    parts += [f"{job.ranks_per_node} ranks on each"] if job.ranks_per_node > 1 else []
    parts += [f"{gpus:g} GPU{'' if gpus == 1 else 's'} on each"] if gpus else []
    return ", ".join(parts)


def _launcher_for(job: Job, needs: str) -> str:
    command = f"balsam launcher --wf-name {shlex.quote(job.workflow)}"
    return f"{command}  # where there are {needs}" if needs else command


def _made(job: Job, reason: str, *lines: str, jobs: Sequence[int] = (), fix: str = "") -> Explanation:
    return Explanation(job=job.id or 0, state=job.state, reason=reason, lines=lines, jobs=tuple(jobs), fix=fix)


def _listed(jobs: Sequence[JobState], count: int) -> str:
    text = ", ".join(f"{one.id} ({one.state})" for one in jobs)
    return f"{text}, ..." if count > len(jobs) else text


def _because(message: str) -> str:
    return f": {message}" if message else ""


def _clock(moment: datetime | None) -> str:
    """Return a moment in local time."""
    return "an unknown time" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
