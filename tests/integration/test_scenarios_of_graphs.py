"""Jobs that wait for others, on every database: order, files, failures that go down, graphs that grow as they run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from scenarios import DRAINED, LAUNCHED, Scenarios
from workflow_runs import py, python, sh

from balsam_core import Job, open_db

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from scenarios import Flow

    from balsam_core.dbdir.directory import DBDir

scenario = Scenarios()


@pytest.fixture(scope="module")
def judge(module_db: DBDir) -> Iterator[Callable[[str], None]]:
    with scenario.drained(module_db.path, "--max-ranks-per-node", "8") as drained:
        yield drained


# ---- order and files


@scenario
def a_diamond(flow: Flow) -> Iterator[str]:
    top = sh("echo top > file", name="top")
    sides = [sh(f"cat file; echo side{n} > side{n}", name=f"side{n}", parents=[top]) for n in (1, 2)]
    for side in sides:
        side.input_files = ["file"]
    bottom = sh("cat side1 side2", name="bottom", parents=sides, input_files=["side1", "side2"])
    flow.add(bottom, *sides, top)
    yield DRAINED
    assert flow.text(sides[0], "side1.out") == "top\n"
    assert flow.text(bottom, "bottom.out") == "side1\nside2\n"


@scenario
def a_chain(flow: Flow) -> Iterator[str]:
    chain = [sh("echo 0 > n", name="c0")]
    for number in range(1, 6):
        script = "echo $(($(cat n) + 1)) > next; rm n; mv next n"
        chain.append(sh(script, name=f"c{number}", parents=[chain[-1]], input_files=["n"]))
    flow.add(*chain)
    yield DRAINED
    assert [flow.text(job, "n") for job in chain] == [f"{n}\n" for n in range(6)]


@scenario
def a_fan_out_and_in(flow: Flow) -> Iterator[str]:
    top = sh("echo x > seed", name="top")
    fan = [sh(f"cat seed > part{n}", name=f"f{n}", parents=[top], input_files=["seed"]) for n in range(20)]
    flow.add(top, *fan, bottom := sh("cat part* | wc -l", name="bottom", parents=fan, input_files=["part*"]))
    yield DRAINED
    assert flow.text(bottom, "bottom.out").strip() == "20"


@scenario
def layers_of_which_each_job_needs_all_of_the_last(flow: Flow) -> Iterator[str]:
    layers: list[list[Job]] = []
    for depth in range(4):
        above = layers[-1] if layers else []
        files = [f"l{depth - 1}-{n}" for n in range(4)] if above else []
        script = f"cat {' '.join(files)} /dev/null; echo x > l{depth}"
        layers.append([sh(f"{script}-{n}", name=f"l{depth}-{n}", parents=above, input_files=files) for n in range(4)])
    flow.add(*(job for layer in layers for job in layer))
    yield DRAINED
    assert {flow.text(job, f"{job.name}.out") for job in layers[-1]} == {"x\n" * 4}
    assert set(flow.states().values()) == {"JOB_FINISHED"}


@scenario
def a_child_of_a_quick_and_a_slow_parent_waits_for_both(flow: Flow) -> Iterator[str]:
    quick, slow = sh("true", name="quick"), sh("sleep 1; touch slow", name="slow")
    flow.add(quick, slow, child := sh("ls slow", name="child", parents=[quick, slow], input_files=["slow"]))
    yield DRAINED
    assert flow.text(child, "child.out") == "slow\n"
    assert flow.transitions(child)[:3] == ["CREATED", "AWAITING_PARENTS", "READY"]


@scenario
def a_parent_of_another_workflow(flow: Flow) -> Iterator[str]:
    parent = sh("echo other > file", name="parent", workflow="another workflow")
    flow.add(parent, child := sh("cat file", name="child", parents=[parent], input_files=["file"]))
    yield DRAINED
    assert flow.text(child, "child.out") == "other\n"


@scenario
def a_child_that_is_added_when_its_parent_has_finished(flow: Flow) -> Iterator[str]:
    flow.add(parent := sh("echo early > file", name="parent"))
    yield LAUNCHED
    flow.wait_for(parent, "JOB_FINISHED")
    flow.add(child := sh("cat file", name="child", parents=[parent], input_files=["file"]))
    yield DRAINED
    assert flow.transitions(child)[:2] == ["CREATED", "READY"]
    assert flow.text(child, "child.out") == "early\n"


@scenario
def a_child_that_is_added_while_its_parent_runs(flow: Flow) -> Iterator[str]:
    flow.add(parent := sh("until test -e go; do sleep 0.1; done; echo late > file", name="parent"))
    yield LAUNCHED
    flow.wait_for(parent, "RUNNING")
    flow.add(child := sh("cat file", name="child", parents=[parent], input_files=["file"]))
    assert flow.states()["child"] == "AWAITING_PARENTS"
    (flow.db.workdir(parent) / "go").touch()
    yield DRAINED
    assert flow.text(child, "child.out") == "late\n"


@scenario
def a_dependency_that_is_added_later_counts(flow: Flow) -> Iterator[str]:
    flow.add(parent := sh("until test -e go; do sleep 0.1; done; echo x > file", name="parent"))
    flow.add(middle := sh("true", name="middle", parents=[parent]))
    yield LAUNCHED
    flow.wait_for(parent, "RUNNING")
    flow.add(last := sh("cat file", name="last", parents=[middle], input_files=["file"]))
    assert flow.db.jobs.add_dependency(parent, last)
    (flow.db.workdir(parent) / "go").touch()
    yield DRAINED
    assert flow.text(last, "last.out") == "x\n"


# ---- ends that go down


@scenario
def a_failure_goes_down_a_chain(flow: Flow) -> Iterator[str]:
    bad = sh("exit 1", name="bad")
    middle = sh("true", name="middle", parents=[bad])
    flow.add(bad, middle, last := sh("true", name="last", parents=[middle]))
    yield DRAINED
    assert set(flow.states().values()) == {"FAILED"}
    assert f"parent {bad.id} failed" in flow.messages(middle)
    assert f"parent {middle.id} failed" in flow.messages(last)
    assert flow.transitions(last) == ["CREATED", "AWAITING_PARENTS", "FAILED"]


@scenario
def one_failed_parent_of_two_is_enough_and_the_other_runs_on(flow: Flow) -> Iterator[str]:
    bad, good = sh("exit 1", name="bad"), sh("sleep 0.5", name="good")
    flow.add(bad, good, child := sh("true", name="child", parents=[good, bad]))
    yield DRAINED
    assert flow.states() == {"bad": "FAILED", "good": "JOB_FINISHED", "child": "FAILED"}
    assert flow.transitions(child).count("FAILED") == 1


@scenario
def a_kill_goes_down_a_chain(flow: Flow) -> Iterator[str]:
    top = sh("true", name="top", num_nodes=2)
    middle = sh("true", name="middle", parents=[top])
    flow.add(top, middle, last := sh("true", name="last", parents=[middle]))
    assert flow.kill(top) == 1
    yield DRAINED
    assert flow.states() == {"top": "USER_KILLED", "middle": "PARENT_KILLED", "last": "PARENT_KILLED"}
    assert f"parent {middle.id} was killed" in flow.messages(last)


@scenario
def the_first_parent_that_ends_badly_decides(flow: Flow) -> Iterator[str]:
    killed, bad = sh("true", name="killed", num_nodes=2), sh("exit 1", name="bad")
    flow.add(killed, bad, sh("true", name="child", parents=[killed, bad]))
    flow.kill(killed)
    yield DRAINED
    assert flow.states() == {"killed": "USER_KILLED", "bad": "FAILED", "child": "PARENT_KILLED"}


@scenario
def a_child_of_a_failed_job_fails_when_it_is_added(flow: Flow) -> Iterator[str]:
    flow.add(bad := sh("exit 1", name="bad"))
    yield LAUNCHED
    flow.wait_for(bad, "FAILED")
    flow.add(sh("true", name="child", parents=[bad]), sh("true", name="taker", parents=[bad], wait_for_parents=False))
    assert flow.states()["child"] == "FAILED"
    yield DRAINED
    assert flow.states() == {"bad": "FAILED", "child": "FAILED", "taker": "JOB_FINISHED"}


# ---- wait_for_parents=False


@scenario
def a_job_that_does_not_wait_runs_beside_its_parent_and_takes_the_files_that_are_there(flow: Flow) -> Iterator[str]:
    flow.add(early := sh("echo early > a", name="early"))
    yield LAUNCHED
    flow.wait_for(early, "JOB_FINISHED")
    late = sh("until test -e go; do sleep 0.1; done; echo late > b", name="late")
    taker = sh("ls; echo $BALSAM_PARENT_IDS", name="taker", parents=[early, late], input_files=["a", "b*"])
    taker.wait_for_parents = False
    flow.add(late, taker)
    flow.wait_for(taker, "JOB_FINISHED")
    assert flow.get("late").state in {"READY", "RUNNING"}
    (flow.db.workdir(late) / "go").touch()
    yield DRAINED
    assert flow.text(taker, "taker.out").split() == ["a", "taker.err", "taker.out", str(early.id), str(late.id)]


@scenario
def a_job_that_does_not_wait_outlives_failed_and_killed_parents(flow: Flow) -> Iterator[str]:
    bad, killed = sh("exit 1", name="bad"), sh("true", name="killed", num_nodes=2)
    taker = sh("true", name="taker", parents=[bad, killed], wait_for_parents=False)
    flow.add(bad, killed, taker, sh("true", name="child of taker", parents=[taker]))
    flow.kill(killed)
    yield DRAINED
    assert flow.states() == {
        "bad": "FAILED", "killed": "USER_KILLED", "taker": "JOB_FINISHED", "child of taker": "JOB_FINISHED",
    }  # fmt: skip


# ---- jobs that add jobs


@scenario
def a_tree_grows(flow: Flow) -> Iterator[str]:
    grow = (
        "depth = me.parameters['depth']\n"
        "command = me.job.command if depth else 'true'\n"
        "me.spawn(command=command, name=f'{me.job.name}0', parameters={'depth': depth - 1})\n"
        "me.spawn(command='true', name=f'{me.job.name}1')\n"
    )
    flow.add(py(grow, name="t", parameters={"depth": 1}))
    yield DRAINED
    assert flow.states() == dict.fromkeys(["t", "t0", "t1", "t00", "t01"], "JOB_FINISHED")
    assert flow.db.jobs.get(int(flow.get("t01").parents[0])).name == "t0"


@scenario
def a_job_adds_a_job_that_a_waiting_one_is_to_wait_for(flow: Flow) -> Iterator[str]:
    adder = py(
        "new = Job(command='sh -c \"echo x > made\"', name='new', workflow=me.job.workflow)\n"
        "me.db.jobs.add(new)\n"
        "me.db.jobs.add_dependency(new, named('last').first())\n",
        name="adder",
    )
    flow.add(adder, last := sh("cat made", name="last", parents=[adder], input_files=["made"]))
    yield DRAINED
    assert flow.text(last, "last.out") == "x\n"


@scenario
def children_of_a_job_that_adds_them_and_fails_do_not_run(flow: Flow) -> Iterator[str]:
    flow.add(py("me.spawn(command='true', name='child')\nraise SystemExit(3)\n", name="adder"))
    yield DRAINED
    assert flow.states() == {"adder": "FAILED", "child": "FAILED"}


@scenario
def a_retried_job_that_adds_jobs_by_keys_adds_them_once(flow: Flow) -> Iterator[str]:
    add = (
        "import pathlib\n"
        "for n in range(3): me.spawn(command='true', name=f'child{n}', key=f'once {n}')\n"
        "again = pathlib.Path('tried').exists()\n"
        "pathlib.Path('tried').touch()\n"
        "raise SystemExit(not again)\n"
    )
    flow.add(py(add, name="adder", max_retries=1))
    yield DRAINED
    assert flow.states() == dict.fromkeys(["adder", "child0", "child1", "child2"], "JOB_FINISHED")


@scenario
def a_handler_adds_a_job_that_goes_on(flow: Flow) -> Iterator[str]:
    job = sh("echo half > result; exit 1", name="job", post_error_handler=True)
    go_on = "sh -c 'cat result; echo whole'"
    job.postprocess = python(f"me.spawn(command={go_on!r}, name='next', input_files=['result'])")
    flow.add(job)
    yield DRAINED
    assert flow.states() == {"job": "JOB_FINISHED", "next": "JOB_FINISHED"}
    assert flow.text(flow.get("next"), "next.out") == "half\nwhole\n"


@scenario
def a_job_knows_itself_and_its_parents_and_waits_for_jobs_that_it_adds(flow: Flow) -> Iterator[str]:
    parents = [sh("true", name=f"parent{n}") for n in range(2)]
    script = (
        "import os\n"
        "print(me.id, os.environ['BALSAM_JOB_ID'], me.parameters, me.job.attempt)\n"
        "print([job.name for job in me.parents()], os.environ['BALSAM_PARENT_IDS'])\n"
        "new = [Job(command='true', name=f'new{n}', workflow=me.job.workflow) for n in range(3)]\n"
        "me.db.jobs.add(new)\n"
        "print(sorted(f'{job.name} {job.state}' for job in me.db.as_completed(new, timeout=60)))\n"
    )
    flow.add(*parents, job := py(script, name="job", parents=parents, parameters={"x": [1, 2.5]}))
    yield DRAINED
    assert flow.text(job, "job.out").splitlines() == [
        f"{job.id} {job.id} {{'x': [1, 2.5]}} 1",
        f"['parent0', 'parent1'] {parents[0].id} {parents[1].id}",
        str([f"new{n} JOB_FINISHED" for n in range(3)]),
    ]


@scenario
def jobs_that_add_jobs_side_by_side_lose_and_double_none(flow: Flow) -> Iterator[str]:
    add = (
        "me.db.jobs.add([Job(command='true', name=f'{me.job.name}-{n}', workflow=me.job.workflow)"
        " for n in range(20)])\n"
        "me.db.jobs.add([Job(command='true', name=f'shared-{n}', workflow=me.job.workflow, key=f'shared {n}')"
        " for n in range(5)])\n"
    )
    flow.add(*(py(add, name=f"adder{number}") for number in range(2)))
    yield DRAINED
    names = [job.name for job in flow.jobs]
    assert len(names) == len(set(names)) == 2 + 2 * 20 + 5
    assert set(flow.states().values()) == {"JOB_FINISHED"}
    assert {job.attempt for job in flow.jobs} == {1}


@scenario
def jobs_that_others_add_while_the_launcher_runs_are_run_once(flow: Flow) -> Iterator[str]:
    def add(number: int) -> None:
        with open_db(flow.db.path) as db:
            for n in range(10):
                db.jobs.add(sh("echo x >> runs", name=f"{number}-{n}", workflow=flow.name))

    yield LAUNCHED
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    yield DRAINED
    assert len(flow.states()) == 40
    assert {flow.text(job, "runs") for job in flow.jobs} == {"x\n"}


@pytest.mark.parametrize("name", list(scenario))
def test_graphs(judge: Callable[[str], None], name: str) -> None:
    judge(name)
