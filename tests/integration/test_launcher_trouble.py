"""What happens around a launcher harms no job: too few descriptors, a terminal that is gone, an error of its own."""

from __future__ import annotations

import errno
import resource
import shlex
import subprocess
import time

import pytest
from balsam_program import BALSAM
from resources import is_alive

from balsam_core import App, Job, open_db
from balsam_core.backends import registry
from balsam_core.errors import DBDirError
from balsam_core.launcher.job import claimed_job as claimed_job_module
from balsam_core.launcher.loop import Launcher
from balsam_core.launcher.options import LauncherOptions
from balsam_core.launcher.progress import Progress
from balsam_core.model.calls import GetLaunchers

DEADLINE = 60.0  # seconds


def sh(script, **fields):
    return Job(command=shlex.join(["sh", "-c", script]), **fields)


def states(db):
    return {job.name: str(job.state) for job in db.jobs}


def test_too_few_descriptors_make_jobs_wait_and_not_fail(db):
    db.jobs.add([sh("sleep 0.1", name=f"j{number}") for number in range(120)])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = ["--db", str(db.path), "launcher", "--consume-all", "--max-ranks-per-node", "60"]
    done = subprocess.run(
        [*BALSAM, *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (48, most)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("120 finished, 0 failed in ")
    assert {job.attempt for job in db.jobs} == {1}


def test_no_descriptor_for_the_working_directory_is_no_fault_of_the_job(db, monkeypatch):
    make, tries = claimed_job_module.make_workdir, []

    def short(directory, job):
        tries.append(job.id)
        if len(tries) < 4:
            raise DBDirError("can't make it") from OSError(errno.EMFILE, "Too many open files")
        return make(directory, job)

    monkeypatch.setattr(claimed_job_module, "make_workdir", short)
    db.jobs.add([sh("echo x >> runs", name=f"j{number}") for number in range(3)])
    assert Launcher(db, LauncherOptions(slots=2)).run().finished == 3
    assert len(tries) > 3
    assert [(db.workdir(job) / "runs").read_text() for job in db.jobs] == ["x\n"] * 3


class BrokenPipe:
    """A terminal that went away."""

    every = 0.01

    def __init__(self):
        self.shown = 0

    def show(self, snapshot):
        self.shown += 1
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    def close(self):
        raise OSError(errno.EIO, "Input/output error")


def test_a_terminal_that_is_gone_ends_no_job(db):
    db.jobs.add([sh("sleep 0.1", name=f"j{number}") for number in range(4)])
    progress = BrokenPipe()
    assert Launcher(db, LauncherOptions(slots=2), progress).run().finished == 4
    assert progress.shown == 1


class Bug(Progress):
    """Stands for a bug of the launcher, once jobs run."""

    every = 0.05

    def __init__(self, ready):
        self._ready = ready

    def show(self, snapshot):
        if self._ready():
            raise KeyError("bug")


def test_an_unexpected_error_leaves_no_process_and_frees_the_jobs(db):
    job = sh("sleep 600 & echo $! > child; echo $$ > pid; wait", name="sleeps")
    db.jobs.add(job)
    place = db.workdir(job)
    with pytest.raises(KeyError, match="bug"):
        Launcher(db, LauncherOptions(slots=1), Bug((place / "pid").exists)).run()
    assert not any(is_alive(int((place / name).read_text())) for name in ("child", "pid"))
    assert db.run(GetLaunchers()) == []
    assert db.jobs.get(job.id).launcher_id is None


def test_a_clash_of_two_parents_files_names_the_second_parent(db):
    parents = [sh(f"echo {n} > coordinates.xyz", name=f"p{n}") for n in (1, 2)]
    child = sh("cat coordinates*.xyz", name="child", parents=parents, input_files=["coordinates.xyz"])
    db.jobs.add([*parents, child])
    assert Launcher(db, LauncherOptions(slots=2)).run().finished == 3
    place = db.workdir(child)
    first, second = sorted(parents, key=lambda parent: parent.id)
    assert (place / "coordinates.xyz").resolve() == (db.workdir(first) / "coordinates.xyz").resolve()
    link = place / f"coordinates_{second.id}.xyz"
    assert link.resolve() == (db.workdir(second) / "coordinates.xyz").resolve()


def test_missing_files_and_parameters_fail_their_job_only(db):
    db.apps.add(App("calc", "cat {file}"))
    db.apps.add(App("changed", "true"))
    bad = Job(app="calc", name="no-file", parameters={"file": "params.in"})
    late = Job(app="changed", name="no-parameter", parameters={"a": 1})
    good = Job(app="calc", name="good", parameters={"file": "/dev/null"})
    db.jobs.add([bad, late, good])
    db.jobs.where(id=late.id).kill()  # an app asks for nothing that a waiting job lacks
    db.apps.add(App("changed", "true {nope}"), replace=True)
    db.jobs.where(id=late.id).retry()
    Launcher(db, LauncherOptions(slots=2)).run()
    assert states(db) == {"no-file": "FAILED", "no-parameter": "FAILED", "good": "JOB_FINISHED"}
    why = {job.name: db.jobs.history(job)[-1].message for job in (bad, late)}
    assert "params.in: No such file" in why["no-file"]
    assert "parameter 'nope' is missing" in why["no-parameter"]


def test_jobs_killed_before_their_start_never_start(db):
    first = sh("until test -e go; do sleep 0.02; done", name="first")
    rest = [sh("touch started", name=f"j{number}") for number in range(20)]
    db.jobs.add([first, *rest])
    words = ["--db", str(db.path), "launcher", "--consume-all", "--max-ranks-per-node", "1"]
    with subprocess.Popen([*BALSAM, *words], stdout=subprocess.PIPE, text=True) as one:
        deadline = time.monotonic() + DEADLINE
        while db.jobs.get(first.id).state != "RUNNING":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for job in rest:
            db.jobs.where(id=job.id).kill()
        (db.workdir(first) / "go").touch()
        one.communicate(timeout=DEADLINE)
    assert one.returncode == 0
    assert set(states(db).values()) == {"JOB_FINISHED", "USER_KILLED"}
    assert not any((db.workdir(job) / "started").exists() for job in rest)


def mounted(db, options):
    """Run a launcher for which ``data/`` is another file system."""
    mount = f'mount -t tmpfs {options} tmpfs "$1" || exit 99; shift; exec "$@"'
    words = [*BALSAM, "--db", str(db.path), "launcher", "--consume-all"]
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", str(db.path / "data"), *words],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    return done


def check_given_back(db, done, why):
    assert done.returncode == 6, done
    assert why in done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") < 10
    assert db.run(GetLaunchers()) == []
    assert db.jobs.where(launcher_id=None).count() == db.jobs.count()
    (log,) = (db.path / "log").glob("launcher-*.log")
    assert len(log.read_text().splitlines()) < 30


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ("-o nr_inodes=20", "no space left on device"),
        ("-o ro", "read-only file system"),
    ],
)
def test_where_no_working_directory_can_be_made_everything_is_given_back(db, options, why):
    db.jobs.add([sh("true", name=f"j{number}") for number in range(200)])
    done = mounted(db, options)
    check_given_back(db, done, "Ended early: can't ")  # make a working directory, or write into it
    assert why in done.stdout
    found = set(states(db).values())
    assert found <= {"JOB_FINISHED", "READY", "PREPROCESSED"}
    assert found & {"READY", "PREPROCESSED"}


def test_runs_that_fail_because_the_disk_is_full_did_not_fail(db):
    job = sh("cat /dev/zero > file", name="writes")
    db.jobs.add([job, *(sh("true", name=f"j{number}") for number in range(20))])
    done = mounted(db, "-o size=1m")
    check_given_back(db, done, "(no space left in ")
    assert states(db)["writes"] == "RESTART_READY"
    assert "FAILED" not in states(db).values()


def test_where_data_may_not_be_written_everything_is_given_back(db):
    (db.path / "data").chmod(0o500)
    db.jobs.add([sh("true", name=f"j{number}") for number in range(200)])
    # Root too is stopped by permissions then.
    as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]
    words = [*as_user, *BALSAM, "--db", str(db.path), "launcher", "--consume-all"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    check_given_back(db, done, f"can't make the working directory '{db.path}/data/default': permission denied")
    assert set(states(db).values()) == {"READY"}


def test_a_directory_that_one_job_may_not_write_fails_that_job_only(db, tmp_path):
    forbidden = tmp_path / "forbidden"
    forbidden.mkdir(mode=0o500)
    db.jobs.add([sh("true", name="bad", user_workdir=str(forbidden / "x")), sh("true", name="good")])
    as_user = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]
    words = [*as_user, *BALSAM, "--db", str(db.path), "launcher", "--consume-all"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert done.stdout.startswith("1 finished, 1 failed"), done
    assert states(db) == {"bad": "FAILED", "good": "JOB_FINISHED"}


SLOW_END = """
CREATE FUNCTION wait_at_end() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN IF NEW.state = 'JOB_FINISHED' THEN PERFORM pg_sleep(1.6); END IF; RETURN NEW; END $$;
CREATE TRIGGER wait_at_end BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION wait_at_end();
"""


def test_a_write_that_takes_longer_than_calls_may_is_made_in_the_end(make_db, monkeypatch):
    monkeypatch.setattr("balsam_core.launcher.retrying_client.CALL_TIMEOUT", 0.5)
    directory = make_db("postgres")
    engine = registry.load("postgres").create_engine(directory, "owner")
    with engine.begin() as conn:
        conn.exec_driver_sql(SLOW_END)
    engine.dispose()
    with open_db(directory.path) as db:
        db.jobs.add(sh("echo x >> runs", name="slow"))
        options = LauncherOptions(slots=2, time_limit=DEADLINE)
        outcome = Launcher(db, options).run()
        assert (outcome.finished, outcome.reason) == (1, "")
        (job,) = db.jobs
        assert (str(job.state), job.attempt, (db.workdir(job) / "runs").read_text()) == ("JOB_FINISHED", 1, "x\n")
