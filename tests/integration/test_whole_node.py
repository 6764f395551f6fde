"""A launcher on the whole node: processors, GPUs, packing, and jobs of several ranks by real MPI."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest
from balsam_program import BALSAM, child, here
from mpi_programs import IMPLEMENTATIONS, compile_ranks

from balsam_core import App, Job, open_db

DEADLINE = 60.0  # seconds


@pytest.fixture
def path(tmp_path):
    here.good("init", tmp_path / "db")
    return tmp_path / "db"


@pytest.fixture
def db(path):
    with open_db(path) as opened:
        yield opened


def sh(script, **fields):
    return Job(command=shlex.join(["sh", "-c", script]), **fields)


def launch(path, *words, **settings):
    done = child("--db", path, "-o", "json", "launcher", "--consume-all", *words, **settings)
    assert done.code in {0, 10}, done  # 10: jobs have failed
    return done.json


def text(db, job, name=None):
    return (db.workdir(job) / (name or f"{job.name}.out")).read_text()


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def overlap(tmp_path):
    """A script that notes how many of its kind run at the same time, and what gives the most."""
    folder = tmp_path / "running"
    folder.mkdir()
    script = f"touch {folder}/$$; ls {folder} | wc -l >>{tmp_path}/counts; sleep 0.3; rm {folder}/$$"
    return script, lambda: max(map(int, (tmp_path / "counts").read_text().split()))


# ---- processors


@pytest.mark.parametrize(
    ("fields", "words", "most"),
    [
        ({"threads_per_rank": 2}, [], 2),
        ({"threads_per_rank": 4, "threads_per_core": 2}, [], 2),
        ({"node_packing_count": 3}, [], 3),
        ({"node_packing_count": 1}, [], 1),
        ({}, ["--num-workers", "2"], 2),
        ({"gpus_per_rank": 0.5}, ["--gpus-per-node", "1"], 2),
        ({"gpus_per_rank": 1}, ["--gpus-per-node", "3"], 3),
    ],
    ids=str,
)
def test_no_more_run_at_a_time_than_fit(fields, words, most, db, path, overlap):
    script, counted = overlap
    db.jobs.add([sh(script, name="a", **fields) for _ in range(6)])
    assert launch(path, "--max-ranks-per-node", "4", *words)["finished"] == 6
    assert counted() == most


@pytest.mark.parametrize(
    ("affinity", "threads", "expected"), [("", 1, None), ("none", 1, None), ("depth", 1, 1), ("0", 2, 1)]
)
def test_a_job_is_bound_as_it_asks(affinity, threads, expected, db, path):
    usable = sorted(os.sched_getaffinity(0))
    if affinity == "0":
        affinity = str(usable[0])
    job = sh("env -u OMP_NUM_THREADS nproc", name="a", cpu_affinity=affinity, threads_per_rank=threads)
    db.jobs.add(job)
    assert launch(path)["finished"] == 1
    assert int(text(db, job).split()[-1]) == (expected or len(usable))


def test_two_bound_jobs_have_different_processors(db, path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor")
    jobs = [sh("taskset -cp $$ | sed 's/.*: //'; sleep 1", name="a", cpu_affinity="depth") for _ in range(2)]
    db.jobs.add(jobs)
    assert launch(path)["finished"] == 2
    assert len({text(db, job) for job in jobs}) == 2


def test_a_processor_that_is_not_there_fails_the_job(db, path):
    job = Job(command="true", name="a", cpu_affinity="8000")
    db.jobs.add(job)
    assert launch(path)["failed"] == 1
    assert "can't bind to the processors 8000" in db.jobs.history(job)[-1].message


@pytest.mark.parametrize("value", ["depht", "1-", "3-1", "0;1", "9999", "-1", "0,,1"])
def test_nonsense_is_refused_when_it_is_added(value, path):
    assert "cpu_affinity" in here.refused("job", "--command", "true", "--cpu-affinity", value, code=5, db=path)


@pytest.mark.parametrize(
    ("threads", "own", "of_launcher", "expected"),
    [(1, None, None, "1"), (3, None, None, "3"), (3, None, "8", "3"), (1, None, "8", "8"), (3, "5", "8", "5")],
)
def test_openmp_programs_are_told_their_threads(threads, own, of_launcher, expected, db, path):
    job = sh(
        "echo $OMP_NUM_THREADS", name="a", threads_per_rank=threads, environ={"OMP_NUM_THREADS": own} if own else {}
    )
    db.jobs.add(job)
    environment = {"OMP_NUM_THREADS": of_launcher} if of_launcher else {}
    assert launch(path, env=environment)["finished"] == 1
    assert text(db, job).strip() == expected


# ---- GPUs


def test_jobs_at_a_time_have_different_gpus(db, path):
    script = "echo $CUDA_VISIBLE_DEVICES $ROCR_VISIBLE_DEVICES $ZE_AFFINITY_MASK; sleep 0.5"
    jobs = [sh(script, name="a", gpus_per_rank=1) for _ in range(2)]
    db.jobs.add(jobs)
    assert launch(path, "--gpus-per-node", "2", "--max-ranks-per-node", "4")["finished"] == 2
    assert {text(db, job) for job in jobs} == {"0 0 0\n", "1 1 1\n"}


def test_the_gpus_that_the_batch_system_granted_are_given_out(db, path):
    job = sh("echo $CUDA_VISIBLE_DEVICES", name="a", gpus_per_rank=2)
    db.jobs.add(job)
    assert launch(path, env={"CUDA_VISIBLE_DEVICES": "GPU-7a,3"})["finished"] == 1
    assert text(db, job) == "GPU-7a,3\n"


def test_jobs_that_want_no_gpu_run_beside_those_that_wait_for_one(db, path, tmp_path):
    """The second job needs the GPU that the first one has until the third has run."""
    wait = f"until [ -e {tmp_path}/third ]; do sleep 0.05; done"
    jobs = [sh(wait, gpus_per_rank=1), sh("true", gpus_per_rank=1), sh(f"touch {tmp_path}/third")]
    db.jobs.add(jobs)
    done = launch(path, "--gpus-per-node", "1", "--max-ranks-per-node", "4", "--time-limit-minutes", "0.5")
    assert (done["finished"], done["reason"]) == (3, "")


@pytest.mark.parametrize(
    ("special", "words"), [({"node_packing_count": 1}, []), ({"gpus_per_rank": 1}, ["--gpus-per-node", "1"])], ids=str
)
def test_jobs_that_wait_for_what_few_need_keep_no_others(special, words, db, path, tmp_path):
    """All plain jobs run while the first special one does, though more of its kind wait."""
    last = tmp_path / "last"
    wait = f"until [ -e {last} ]; do sleep 0.05; done"
    db.jobs.add([sh(wait, **special), *(sh("true", **special) for _ in range(4))])
    db.jobs.add([sh("sleep 0.1") for _ in range(8)])
    db.jobs.add(sh(f"touch {last}", priority=-1))
    done = launch(path, "--max-ranks-per-node", "3", "--time-limit-minutes", "0.5", *words)
    assert (done["finished"], done["reason"]) == (14, "")


@pytest.mark.parametrize("given", [[], ["--job-file", "-"]], ids=["all", "given"])
@pytest.mark.parametrize(
    ("fields", "words", "held"),
    [({}, ["--num-workers", "1"], 1), ({"threads_per_rank": 4}, [], 1), ({"threads_per_rank": 2}, [], 2)],
    ids=str,
)
def test_no_more_is_claimed_than_runs(given, fields, words, held, db, path):
    ids = db.jobs.add([sh("sleep 60", name="a", **fields) for _ in range(6)])
    words = [*(given or ["--consume-all"]), "--max-ranks-per-node", "4", *words]
    launcher = subprocess.Popen(
        [*BALSAM, "--db", str(path), "launcher", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        launcher.stdin.write(" ".join(map(str, ids)).encode())
        launcher.stdin.close()
        wait_until(lambda: db.jobs.where(state="RUNNING").count() == held)
        time.sleep(1)  # two more rounds of claims
        assert sum(job.launcher_id is not None for job in db.jobs) == held
    finally:
        launcher.terminate()
        launcher.wait(DEADLINE)


# ---- what does not fit is named


def test_what_is_not_run_is_named_with_what_it_lacks(db, path):
    db.jobs.add([Job(command="true", num_nodes=2) for _ in range(3)])
    db.jobs.add([Job(command="true", ranks_per_node=99), Job(command="true", gpus_per_rank=1)])
    db.jobs.add(Job(command="true", wall_time_minutes=60))
    out = child.good("--db", path, "launcher", "--consume-all", "--time-limit-minutes", "5").out
    assert "3 jobs need 2 nodes (ids 1-3); this launcher has 1" in out
    assert "1 job needs 99 ranks per node (id 4); this launcher has" in out
    assert "1 job needs 1 GPU per node (id 5); this launcher has 0" in out
    assert "1 job needs 60 minutes (id 6); this launcher has" in out
    (path.parent / "ids").write_text("2 4")
    out = child.good("--db", path, "launcher", "--job-file", path.parent / "ids").out
    assert "1 job needs 2 nodes (id 2); this launcher has 1" in out
    assert "1 job needs 99 ranks per node (id 4)" in out


def test_jobs_of_several_ranks_are_named_where_there_is_no_mpi(db, path):
    db.jobs.add(Job(command="true", ranks_per_node=2))
    for words, why in ((["--job-mode", "serial"], "--job-mode serial"), ([], "no MPI")):
        out = child.good("--db", path, "launcher", "--consume-all", *words, env={"PATH": "/nowhere"}).out
        assert "1 job needs 2 ranks per node (id 1)" in out
        assert why in out


# ---- MPI


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def mpi(request, tmp_path_factory):
    """The name of an implementation, and the program."""
    return request.param, compile_ranks(request.param, tmp_path_factory.mktemp("mpi"))


def ranks_of(db, job, count=2):
    return [text(db, job, f"rank.{number}").split() for number in range(count)]


def test_several_jobs_of_two_ranks_at_a_time(mpi, db, path):
    name, program = mpi
    jobs = [Job(command=f"{program} say", name="a", ranks_per_node=2) for _ in range(6)]
    db.jobs.add(jobs)
    assert launch(path, "--mpi", name, "--max-ranks-per-node", "4")["finished"] == 6
    folders = set()
    for job in jobs:
        ranks = ranks_of(db, job)
        assert [rank[1:3] for rank in ranks] == [["2", "1"]] * 2
        folders |= {rank[4] for rank in ranks}
    assert len(folders) == 6
    assert not any(Path(folder).exists() for folder in folders)


def test_ranks_keep_to_the_processors_of_their_job(mpi, db, path):
    name, program = mpi
    job = Job(command=f"{program} say", name="a", ranks_per_node=2, cpu_affinity=str(min(os.sched_getaffinity(0))))
    db.jobs.add(job)
    assert launch(path, "--mpi", name, "--max-ranks-per-node", "2")["finished"] == 1
    assert [rank[3] for rank in ranks_of(db, job)] == ["1", "1"]


@pytest.mark.parametrize("slots", [2, 4])
def test_each_rank_has_processors_of_its_own(slots, mpi, db, path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is one processor")
    name, program = mpi
    job = Job(command=f"{program} say", name="a", ranks_per_node=2, cpu_affinity="depth")
    db.jobs.add(job)
    assert launch(path, "--mpi", name, "--max-ranks-per-node", str(slots))["finished"] == 1
    first, second = (set(rank[5].split(",")) - {""} for rank in ranks_of(db, job))
    assert (len(first), len(second), first & second) == (1, 1, set())


def test_a_program_that_its_ranks_can_not_start_is_named(mpi, db, path):
    job = Job(command="./there_is_none", name="a", ranks_per_node=2, cpu_affinity="depth")
    db.jobs.add(job)
    assert launch(path, "--mpi", mpi[0], "--max-ranks-per-node", "2")["failed"] == 1
    assert "a rank's program './there_is_none' can't be started: No such file or directory" in text(db, job, "a.err")


def test_a_rank_that_aborts_fails_the_job(mpi, db, path):
    name, program = mpi
    job = Job(command=f"{program} abort", name="a", ranks_per_node=2)
    db.jobs.add(job)
    assert launch(path, "--mpi", name, "--max-ranks-per-node", "2")["failed"] == 1
    # Open MPI's mpirun sometimes crashes itself while it ends the other ranks.
    assert db.jobs.get(job.id).return_code in ({7, -signal.SIGSEGV} if name == "openmpi" else {7})


def test_all_ranks_end_with_a_killed_job_and_with_the_launcher(mpi, db, path):
    name, program = mpi
    jobs = [Job(command=f"{program} sleep 600", name=kind, ranks_per_node=2) for kind in ("killed", "stopped")]
    db.jobs.add(jobs)
    launcher = subprocess.Popen(
        [*BALSAM, "--db", str(path), "launcher", "--consume-all", "--mpi", name, "--max-ranks-per-node", "4"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: all((db.workdir(job) / f"rank.{rank}").exists() for job in jobs for rank in (0, 1)))
        wait_until(lambda: all(len(rank) == 6 for job in jobs for rank in ranks_of(db, job)))
        pids = {job.name: [int(rank[0]) for rank in ranks_of(db, job)] for job in jobs}
        here.good("kill", jobs[0].id, db=path)
        wait_until(lambda: not any(map(is_alive, pids["killed"])))
        assert all(map(is_alive, pids["stopped"]))
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(DEADLINE) == 128 + signal.SIGTERM
        assert not any(map(is_alive, pids["stopped"]))
    finally:
        launcher.kill()
        launcher.wait()
    assert [str(db.jobs.get(job.id).state) for job in jobs] == ["USER_KILLED", "RESTART_READY"]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_app_starts_its_ranks_by_a_template_of_the_users_own(mpi, db, path, tmp_path):
    name, program = mpi
    settings = tmp_path / "config" / "balsam" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(f"mpi = 'mpiexec.{name} -n {{ranks}}'\n")
    db.apps.add(App("ranks", f"{program} say"))
    job = Job(app="ranks", name="a", ranks_per_node=2, environ={"OMPI_MCA_rmaps_base_oversubscribe": "1"})
    db.jobs.add(job)
    assert launch(path, "--max-ranks-per-node", "2", env={"XDG_CONFIG_HOME": str(tmp_path / "config")})["finished"] == 1
    assert [rank[1] for rank in ranks_of(db, job)] == ["2", "2"]


@pytest.mark.parametrize(
    ("value", "part"),
    [
        ("nonsense", "none of openmpi"),
        ("mpirun -n 4", "{ranks}"),
        ("mpirun -n {rank}", "{rank} is not known"),
        ("mpirun -n {ranks", "no template"),
        ("there_is_no_such_program -n {ranks}", "no program"),
        ("jsrun", "no program of jsrun"),
    ],
)
def test_a_wrong_way_to_start_ranks_is_refused(value, part, path):
    assert part in here.refused("launcher", "--consume-all", "--mpi", value, code=13, db=path)
