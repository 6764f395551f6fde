"""Whole workflows through real launchers, on every database: states, handlers, retries, jobs that change them."""

from __future__ import annotations

import csv
import itertools
import shlex
import time
from typing import TYPE_CHECKING, Any

import pytest
from balsam_program import here
from resources import is_alive
from workflow_runs import (
    Running,
    end_leases,
    killing,
    launch,
    messages,
    py,
    sh,
    states,
    text,
    transitions,
    wait_for_state,
)

from balsam_core import Job, open_db
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core import Database
    from balsam_core.dbdir.directory import DBDir


@pytest.fixture
def db(each_db: DBDir) -> Iterator[Database]:
    with open_db(each_db.path) as opened:
        yield opened


def script(text: str) -> str:
    return shlex.join(["sh", "-c", text])


# ---- each step is on record before the next starts


@pytest.mark.parametrize(
    ("step", "state", "outcome"),
    [
        ("preprocess", "STAGED_IN", "STAGED_IN"),
        ("postprocess", "RUN_DONE", "RUN_DONE"),
        ("handler", "RUN_ERROR", "RUN_ERROR"),
    ],
)
def test_a_launcher_killed_in_a_step_repeats_that_step_only(db: Database, step: str, state: str, outcome: str) -> None:
    hook = script("echo x >> hooks; echo $$ > pid; test -e again || exec sleep 600")
    fields = {"preprocess": hook} if step == "preprocess" else {"postprocess": hook}
    end = "exit 3" if step == "handler" else "exit 0"
    job = sh(f"echo x >> runs; {end}", name="job", post_error_handler=True, **fields)
    db.jobs.add(job)
    place = db.workdir(job)
    with Running(db) as first, killing(place / "pid"):
        wait_for_state(db, job, state)
        wait_until(lambda: text(db, job, "pid"), what="the hook's start")
        first.kill()
    (place / "again").touch()
    end_leases(db.directory)
    launch(db)
    assert states(db) == {"job": "JOB_FINISHED"}
    assert (text(db, job, "hooks"), text(db, job, "runs")) == ("x\nx\n", "x\n")
    assert [one.outcome for one in db.jobs.attempts(job)] == [outcome, "JOB_FINISHED"]
    assert "launcher 1" in messages(db, job)
    assert text(db, job, "postprocess.log.1") == ""


def test_jobs_without_hooks_are_written_together(db: Database) -> None:
    jobs = [sh("true", name=str(number)) for number in range(20)]
    db.jobs.add(jobs)
    launch(db)
    assert all(len(db.jobs.history(job)) <= 3 for job in jobs)  # added; (running;) ended


def test_hooks_of_many_jobs_keep_all_slots_busy(db: Database) -> None:
    """While a state is being written, its job takes no slot."""
    hooks = {"preprocess": "sleep 0.1", "postprocess": "sleep 0.1"}
    db.jobs.add([sh("sleep 0.1", name=str(number), **hooks) for number in range(20)])
    done = launch(db, "--max-ranks-per-node", "4")
    assert done["finished"] == 20
    assert done["seconds"] < 20 * 0.3 / 4 * 3


# ---- outcome x handler x retries x child


OUTCOMES = {"well": "exit 0", "error": "exit 1", "timeout": "exec sleep 600"}
HANDLERS = {"no": "", "saves": "exit 0", "fails": 'test -z "$BALSAM_JOB_ERROR$BALSAM_JOB_TIMEOUT"'}
RETRIES = {"none": 0, "helps": 1, "useless": 1}
CHILDREN = ("none", "waits", "takes")


def expected(outcome: str, handler: str, retry: str) -> tuple[str, int]:
    """Return the last state and the number of attempts."""
    if outcome == "well":
        return "JOB_FINISHED", 1
    if outcome == "error" and retry == "helps":
        return "JOB_FINISHED", 2
    attempts = 2 if outcome == "error" and retry == "useless" else 1
    return ("JOB_FINISHED" if handler == "saves" else "FAILED"), attempts


def test_every_mixture_of_outcome_handler_retries_and_child(db: Database) -> None:
    jobs: list[Job] = []
    wanted: dict[str, tuple[str, int]] = {}
    for outcome, handler, retry, child in itertools.product(OUTCOMES, HANDLERS, RETRIES, CHILDREN):
        name = f"{outcome}-{handler}-{retry}-{child}"
        body = OUTCOMES[outcome]
        if retry == "helps" and outcome == "error":
            body = "test -e tried && exit 0; touch tried; exit 1"
        job = sh(
            body,
            name=name,
            max_retries=RETRIES[retry],
            postprocess=script(HANDLERS[handler]) if handler != "no" else "",
            post_error_handler=handler != "no",
            post_timeout_handler=handler != "no",
            time_limit_minutes=0.02 if outcome == "timeout" else 0,
        )
        jobs.append(job)
        wanted[name] = expected(outcome, handler, retry)
        if child != "none":
            jobs.append(sh("true", name=f"child of {name}", parents=[job], wait_for_parents=child == "waits"))
            lives = child == "takes" or wanted[name][0] == "JOB_FINISHED"
            wanted[f"child of {name}"] = ("JOB_FINISHED", 1) if lives else ("FAILED", 0)
    db.jobs.add(jobs)
    done = launch(db, "--max-ranks-per-node", "4")
    assert {job.name: (str(job.state), job.attempt) for job in db.jobs} == wanted
    assert done["finished"] == sum(state == "JOB_FINISHED" for state, _ in wanted.values())


# ---- retries, limits, what is kept


def test_a_retry_waits_longer_each_time_while_others_run(db: Database) -> None:
    slow = sh("date +%s.%N >> times; test $(wc -l < times) -ge 3", name="slow", max_retries=2, retry_delay_seconds=0.5)
    other = sh("true", name="other")
    db.jobs.add([slow, other])
    done = launch(db)
    assert (done["finished"], done["again"]) == (2, 2)
    first, second, third = map(float, text(db, slow, "times").split())
    assert second - first >= 0.5
    assert third - second >= 1.0
    assert third - first < 15
    assert "retry 2 of 2 in 1 s" in messages(db, slow)
    found = db.jobs.get(slow.id or 0)
    assert (found.state, found.attempt, found.not_before) == ("JOB_FINISHED", 3, None)


def test_a_run_over_its_time_limit_is_ended_even_if_it_ignores_that(db: Database) -> None:
    stubborn = sh("trap '' TERM; sleep 600 & echo $! > pid; wait; wait; sleep 600", name="stubborn")
    stubborn.time_limit_minutes, stubborn.max_retries = 0.01, 3
    handled = sh("exec sleep 600", name="handled", time_limit_minutes=0.03, post_timeout_handler=True)
    handled.postprocess = script('test "$BALSAM_JOB_TIMEOUT" = TRUE && echo saved > result')
    child = sh("cat result", name="child", parents=[handled], input_files=["result"])
    db.jobs.add([stubborn, handled, child])
    launch(db)
    assert states(db) == {"stubborn": "FAILED", "handled": "JOB_FINISHED", "child": "JOB_FINISHED"}
    assert transitions(db, stubborn)[-2:] == ["RUN_TIMEOUT", "FAILED"]
    assert "its time limit of 0.01 minutes was over" in messages(db, stubborn)
    assert not is_alive(int(text(db, stubborn, "pid")))
    (attempt,) = db.jobs.attempts(stubborn)
    assert attempt.elapsed is not None
    assert 0.6 <= attempt.elapsed < 20
    assert text(db, child, "child.out") == "saved\n"


def test_a_hook_over_the_time_limit_fails_its_job_and_keeps_no_slot(db: Database) -> None:
    names = ("preprocess", "postprocess")
    hooks = [sh("true", name=name, time_limit_minutes=0.03, **{name: "sleep 600"}) for name in names]
    db.jobs.add([*hooks, sh("true", name="other", priority=-1)])
    launch(db, "--max-ranks-per-node", "1")
    assert states(db) == {"preprocess": "FAILED", "postprocess": "FAILED", "other": "JOB_FINISHED"}
    for job in hooks:
        assert f"{job.name}: its time limit of 0.03 minutes was over" in messages(db, job)


def test_nothing_of_earlier_attempts_is_lost(db: Database) -> None:
    job = sh(
        "echo out $BALSAM_ATTEMPT; echo x >> tries; n=$(wc -l < tries); echo try $n; echo fault $n >&2; test $n -ge 3",
        name="job",
        max_retries=2,
    )
    reader = sh("ls", name="reader", parents=[job], input_files=["*.out", "*.err"])
    db.jobs.add([job, reader])
    launch(db)
    outputs = [text(db, job, name).split()[-1] for name in ("job.out.1", "job.out.2", "job.out")]
    assert outputs == ["1", "2", "3"]
    assert [text(db, job, name) for name in ("job.err.1", "job.err.2", "job.err")] == [
        "fault 1\n", "fault 2\n", "fault 3\n",
    ]  # fmt: skip
    assert "exit code 1: fault 1; retry 1 of 2 | exit code 1: fault 2; retry 2 of 2" in messages(db, job)
    assert set(text(db, reader, "reader.out").split()) == {"job.err", "job.out", "reader.err", "reader.out"}
    found = [(one.attempt, one.return_code, one.outcome) for one in db.jobs.attempts(job)]
    assert found == [(1, 1, "RUN_ERROR"), (2, 1, "RUN_ERROR"), (3, 0, "JOB_FINISHED")]


def test_what_attempts_took_is_shown(db: Database) -> None:
    job = sh("sleep 0.3; test -e tried || { touch tried; exit 4; }", name="job", max_retries=1)
    waiting = sh("true", name="waiting", num_nodes=2)
    db.jobs.add([job, waiting])
    launch(db)
    host = db.jobs.get(job.id or 0).host
    assert host
    shown = here.good("show", str(job.id), db=db.path).out
    (table,) = (part for part in shown.split("\n\n") if part.startswith("ATTEMPT"))
    lines = [line.split() for line in table.splitlines()]
    assert lines[0][:4] == ["ATTEMPT", "OUTCOME", "RETURN_CODE", "HOST"]
    assert [line[:4] for line in lines[1:]] == [["1", "RUN_ERROR", "4", host], ["2", "JOB_FINISHED", "0", host]]
    first, second = here.good("show", str(job.id), "-o", "json", db=db.path).json["attempts"]
    assert (first["return_code"], second["return_code"], second["host"]) == (4, 0, host)
    assert 0.25 <= first["elapsed"] < 10  # it slept for 0.3, but its start is told a moment later
    assert 0 < first["cpu_seconds"] < 10
    assert 2**20 < first["max_memory"] < 2**30
    listed = here.good("ls", "-F", "name,host,elapsed,cpu_seconds", "-o", "csv", db=db.path).out
    ran, unstarted = csv.DictReader(listed.splitlines())
    assert (ran["name"], ran["host"], float(ran["elapsed"]) >= 0.3) == ("job", host, True)
    assert (unstarted["host"], unstarted["elapsed"]) == ("", "")
    assert [one.name for one in db.jobs.where(Job.elapsed > 0.2)] == ["job"]


# ---- graphs


def test_a_diamond_and_a_chain_run_in_order(db: Database) -> None:
    top = sh("echo top > file", name="top")
    sides = [sh(f"cat file; echo side{n} > side{n}", name=f"side{n}", parents=[top]) for n in (1, 2)]
    for side in sides:
        side.input_files = ["file"]
    bottom = sh("cat side1 side2", name="bottom", parents=sides, input_files=["side1", "side2"])
    chain = [sh("echo 0 > n", name="c0")]
    for number in range(1, 6):
        link = sh("echo $(($(cat n) + 1)) > next; rm n; mv next n", name=f"c{number}", parents=[chain[-1]])
        link.input_files = ["n"]
        chain.append(link)
    db.jobs.add([bottom, *sides, top, *chain])
    assert launch(db)["finished"] == 10
    assert text(db, bottom, "bottom.out") == "side1\nside2\n"
    assert text(db, chain[-1], "n") == "5\n"
    assert text(db, chain[0], "n") == "0\n"


def test_failed_and_killed_ends_go_down_and_a_retry_revives_them(db: Database) -> None:
    bad = sh("test -e mended", name="bad")
    middle = sh("true", name="middle", parents=[bad])
    last = sh("true", name="last", parents=[middle])
    taker = sh("true", name="taker", parents=[bad], wait_for_parents=False)
    slow = sh("true", name="slow", num_nodes=2)
    under = sh("true", name="under", parents=[slow])
    db.jobs.add([bad, middle, last, taker, slow, under])
    db.jobs.where(name="slow").kill()
    launch(db)
    assert states(db) == {
        "bad": "FAILED", "middle": "FAILED", "last": "FAILED", "taker": "JOB_FINISHED", "slow": "USER_KILLED",
        "under": "PARENT_KILLED",
    }  # fmt: skip
    assert f"parent {bad.id} failed" in messages(db, middle)
    (db.workdir(bad) / "mended").touch()
    assert db.jobs.where(name="bad").retry() == 1
    launch(db)
    assert {states(db)[name] for name in ("bad", "middle", "last")} == {"JOB_FINISHED"}


def test_a_job_that_does_not_wait_takes_the_files_that_are_there(db: Database) -> None:
    early = sh("echo early > a", name="early")
    db.jobs.add(early)
    launch(db)
    late = sh("echo late > b; test -e done || { touch b2; sleep 1; }", name="late")
    taker = sh("ls", name="taker", parents=[early, late], wait_for_parents=False, input_files=["a", "x*"], priority=9)
    db.jobs.add([late, taker])
    launch(db, "--max-ranks-per-node", "1")
    assert states(db) == dict.fromkeys(["early", "late", "taker"], "JOB_FINISHED")
    assert "a" in text(db, taker, "taker.out").split()


# ---- files from parents


def test_a_parents_file_that_changes_through_a_link_is_told_everywhere(db: Database) -> None:
    parent = sh("echo step0 > state", name="parent")
    links = sh("echo changed > state", name="links", parents=[parent], input_files=["state"], postprocess="true")
    db.jobs.add([parent, links])
    out = here("launcher", "--consume-all", db=db.path).out
    assert f"changed while these jobs ran, which have links to them: {links.id} (balsam show ID)" in out
    assert f"state of job {parent.id} (--input-mode copy gives a job copies)" in messages(db, links)
    assert f"changed while job {links.id} ran, which has links to them: state" in messages(db, parent)
    copies = sh("echo mine > state; exit 1", name="copies", parents=[parent], input_files=["state"], input_mode="copy")
    db.jobs.add(copies)
    done = launch(db)
    assert (done["failed"], done["changed_parents"]) == (1, [])
    assert (text(db, parent, "state"), text(db, copies, "state")) == ("changed\n", "mine\n")
    db.jobs.where(name="copies").retry()
    db.jobs.where(name="copies").kill()
    db.jobs.where(name="copies").retry()
    launch(db)
    assert "changed while" not in messages(db, copies)


def test_a_missing_input_fails_the_job_and_an_idle_wildcard_is_remarked(db: Database) -> None:
    parent = sh("touch equil.restart", name="parent")
    typo = sh("touch ran", name="typo", parents=[parent], input_files=["equil.restrat"])
    idle = sh("true", name="idle", parents=[parent], input_files=["*.restart", "*.xyz"])
    db.jobs.add([parent, typo, idle])
    launch(db)
    assert states(db) == {"parent": "JOB_FINISHED", "typo": "FAILED", "idle": "JOB_FINISHED"}
    assert "input_files: no parent has the file 'equil.restrat'" in messages(db, typo)
    assert transitions(db, typo)[-2:] == ["READY", "FAILED"]
    assert not (db.workdir(typo) / "ran").exists()
    assert "input_files: no file of a parent matches '*.xyz'" in messages(db, idle)


def test_25000_parents(db: Database) -> None:
    count = 25_000
    parents = db.jobs.add(Job(command="true", name="p", num_nodes=2) for _ in range(count))
    some = db.jobs.get(parents[-1])
    place = db.workdir(some)
    place.mkdir(parents=True)
    (place / "x.1").write_text("x")
    child = sh('wc -l < "$BALSAM_PARENT_IDS_FILE"; echo ${BALSAM_PARENT_IDS-unset}; cat x.1; ls', name="child")
    child.parents, child.wait_for_parents, child.input_files = list(parents), False, ["x.*"]
    db.jobs.add(child)
    launch(db)
    assert text(db, child, "child.out").split() == [
        *(str(count), "unset", "xchild.err", "child.out", "parent_ids.txt", "x.1"),
    ]


# ---- jobs that change the workflow while they run


def test_a_tree_of_jobs_grows_while_it_runs(db: Database) -> None:
    grow = (
        "import os\n"
        "depth = me.parameters['depth']\n"
        "for n in range(2 if depth else 0):\n"
        "    me.spawn(command=me.job.command, name=f'{me.job.name}{n}', parameters={'depth': depth - 1},"
        " key=f'{me.job.name}{n}')\n"
    )
    db.jobs.add(py(grow, name="t", parameters={"depth": 2}))
    assert launch(db)["finished"] == 7
    assert set(states(db)) == {"t", "t0", "t1", "t00", "t01", "t10", "t11"}
    spawned = db.jobs.where(name="t01").first()
    assert spawned is not None
    assert [job.name for job in db.jobs.where(id=spawned.parents[0])] == ["t0"]


def test_a_job_adds_a_chain_and_makes_a_waiting_job_wait_for_it(db: Database) -> None:
    adder = py(
        "last = me.db.jobs.where(name='last').first()\n"
        "new = Job(command='sh -c \"echo x > made\"', name='new')\n"
        "me.db.jobs.add(new)\n"
        "me.db.jobs.add_dependency(new, last)\n",
        name="adder",
    )
    last = sh("cat made", name="last", parents=[adder], input_files=["made"])
    db.jobs.add([adder, last])
    assert launch(db)["finished"] == 3
    assert text(db, last, "last.out") == "x\n"


def test_a_job_kills_running_and_waiting_jobs(db: Database) -> None:
    victim = sh("echo $$ > pid; exec sleep 600", name="victim")
    child = sh("true", name="child", parents=[victim])
    waiting = sh("true", name="waiting", num_nodes=2)
    killer = py(
        "import time\n"
        "while me.db.jobs.where(name='victim').first().state != 'RUNNING': time.sleep(0.05)\n"
        "print(me.db.jobs.where(name='victim').kill('by a job'), me.db.jobs.where(name='waiting').kill())\n",
        name="killer",
    )
    db.jobs.add([victim, child, waiting, killer])
    done = launch(db, "--max-ranks-per-node", "2")
    assert (done["finished"], done["killed"]) == (1, 1)
    assert states(db) == {
        "victim": "USER_KILLED", "child": "PARENT_KILLED", "waiting": "USER_KILLED", "killer": "JOB_FINISHED",
    }  # fmt: skip
    assert text(db, killer, "killer.out") == "1 1\n"
    assert "by a job" in messages(db, victim)
    (attempt,) = db.jobs.attempts(victim)
    assert attempt.outcome == "USER_KILLED"
    assert attempt.elapsed
    assert not is_alive(int(text(db, victim, "pid")))


def test_a_job_kills_itself(db: Database) -> None:
    db.jobs.add(py("import time\nme.db.jobs.where(id=me.id).kill('enough')\ntime.sleep(600)\n", name="self"))
    assert launch(db)["killed"] == 1
    assert states(db) == {"self": "USER_KILLED"}


def test_a_job_retries_a_failed_one(db: Database) -> None:
    bad = sh("test -e mended", name="bad")
    db.jobs.add(bad)
    launch(db)
    mender = py(
        "bad = me.db.jobs.where(name='bad')\n(me.db.workdir(bad.first()) / 'mended').touch()\nprint(bad.retry())\n",
        name="mender",
    )
    after = sh("true", name="after", parents=[mender])
    db.jobs.add([mender, after])
    assert launch(db)["finished"] == 3
    assert text(db, mender, "mender.out") == "1\n"
    assert set(states(db).values()) == {"JOB_FINISHED"}


def test_a_postprocess_kills_what_waits_for_its_job(db: Database) -> None:
    kill = "from balsam_core import current_job as c; m = c(); print(m.db.jobs.where(name='child').kill())"
    parent = sh("true", name="parent", postprocess=shlex.join([py("").command.split()[0], "-c", kill]))
    child = sh("true", name="child", parents=[parent])
    grandchild = sh("true", name="grandchild", parents=[child])
    db.jobs.add([parent, child, grandchild])
    launch(db)
    assert states(db) == {"parent": "JOB_FINISHED", "child": "USER_KILLED", "grandchild": "PARENT_KILLED"}


def test_jobs_that_add_jobs_side_by_side_lose_and_double_none(db: Database) -> None:
    add = (
        "me.db.jobs.add([Job(command='true', name=f'{me.job.name}-{n}', key=f'{me.job.name}-{n}')"
        " for n in range(25)])\n"
    )
    db.jobs.add([py(add, name=f"adder{number}") for number in range(4)])
    assert launch(db, "--max-ranks-per-node", "4")["finished"] == 104
    names = [job.name for job in db.jobs]
    assert len(names) == len(set(names)) == 104


# ---- kills in every phase


PHASES: dict[str, tuple[dict[str, Any], str]] = {
    "running": ({"command": script("echo $$ > pid; exec sleep 600")}, "RUNNING"),
    "stubborn": ({"command": script("trap '' TERM; echo $$ > pid; while :; do sleep 1; done")}, "RUNNING"),
    "preprocess": ({"preprocess": script("echo $$ > pid; exec sleep 600")}, "STAGED_IN"),
    "postprocess": ({"postprocess": script("echo $$ > pid; exec sleep 600")}, "RUN_DONE"),
    "delayed": ({"command": "false", "max_retries": 1, "retry_delay_seconds": 600}, "RESTART_READY"),
}


def test_kills_in_every_phase_take_effect_within_three_seconds(db: Database) -> None:
    jobs = [Job(**{"command": "true", "name": name, **fields}) for name, (fields, _) in PHASES.items()]
    queued = Job(command="true", name="queued", priority=-1, threads_per_rank=99)
    children = [Job(command="true", name=f"child of {job.name}", parents=[job]) for job in jobs]
    db.jobs.add([*jobs, *children, queued])
    with Running(db, "--max-ranks-per-node", "5") as launcher:
        for job in jobs:
            wait_for_state(db, job, PHASES[job.name][1])
        wait_until(lambda: all(text(db, job, "pid") for job in jobs if job.name != "delayed"), what="the pids")
        pids = {job.name: int(text(db, job, "pid")) for job in jobs if job.name != "delayed"}
        begin = time.monotonic()
        assert db.jobs.where(Job.name.in_(["queued", *PHASES])).kill() == len(jobs) + 1
        gentle = [pid for name, pid in pids.items() if name != "stubborn"]
        wait_until(lambda: not any(map(is_alive, gentle)), what="the ends")
        assert time.monotonic() - begin < 3
        out, err = launcher.wait()
        assert time.monotonic() - begin < 15, (out, err)
    assert not is_alive(pids["stubborn"])
    ended = states(db)
    assert {ended[job.name] for job in [*jobs, queued]} == {"USER_KILLED"}
    assert {ended[child.name] for child in children} == {"PARENT_KILLED"}
    assert db.jobs.where(launcher_id=None).count() == len(ended)
    rows = {job.name: [one.outcome for one in db.jobs.attempts(job)] for job in jobs}
    assert rows == {name: ["USER_KILLED"] for name in PHASES} | {"delayed": ["RUN_ERROR"]}
