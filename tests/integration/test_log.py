"""``balsam log`` shows what jobs, launchers and the server have written, and follows it to the end."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess

import pytest
from balsam_program import BALSAM, here
from journals import write_journal
from served_db import ServedDB

from balsam_core import Job
from balsam_core.dbdir.launcher_logs import KEPT_LOGS
from balsam_core.model.calls import RegisterLauncher
from balsam_core.system.processes import start_of
from balsam_core.testing.tools import wait_until


def sh(script, **fields):
    return Job(command=shlex.join(["sh", "-c", script]), **fields)


def launch(path):
    assert here("launcher", "--consume-all", db=path).code in {0, 10}  # 10: jobs have failed


@pytest.fixture
def follow(path):
    """Start ``balsam log WORDS -f`` in a process of its own."""
    started = []

    def start(*words):
        command = [*BALSAM, "--db", str(path), "log", *map(str, words), "-f"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


# ---- jobs


def test_a_job_shows_its_output_its_errors_and_its_hooks(db, path):
    job = sh("echo out; echo bad >&2", name="j", preprocess="echo before", postprocess="echo after")
    db.jobs.add(job)
    launch(path)
    shown = here.good("log", job.id, db=path).out
    files = ("preprocess.log", "before"), ("j.out", "out"), ("j.err", "bad"), ("postprocess.log", "after")
    assert shown == "".join(f"==> {name} <==\n{text}\n" for name, text in files)
    assert here.good("log", "last", db=path).out == shown


def test_files_of_a_shared_directory_are_told_apart(db, path, tmp_path):
    jobs = [sh(f"echo {number}", name="j", user_workdir=str(tmp_path / "shared")) for number in (1, 2)]
    db.jobs.add(jobs)
    launch(path)
    assert here.good("log", jobs[1].id, db=path).out == f"==> j_{jobs[1].id}.out <==\n2\n"


def test_people_get_the_last_lines_programs_all(db, path):
    db.jobs.add(sh("seq 300", name="j"))
    launch(path)
    done = here.good("log", 1, db=path)
    assert (done.out.splitlines()[1], len(done.out.splitlines())) == ("201", 101)
    assert done.err == "... showing the last 100 lines of each file: -n 0 for all\n"
    assert here.good("log", 1, "-n", 2, db=path).out == "==> j.out <==\n299\n300\n"
    whole = here.good("log", 1, "-n", 0, db=path)
    assert (len(whole.out.splitlines()), whole.err) == (301, "")
    rows = here.good("log", 1, "-o", "json", db=path).json
    assert [row["line"] for row in rows] == [str(number) for number in range(1, 301)]
    (out,) = here.good("log", 1, "-o", "ids", "-n", 1, db=path).out.split()[:1]
    assert out == rows[0]["file"] == str(path / "data" / "default" / "j_1" / "j.out")


def test_bytes_come_as_they_are_and_escaped_in_json(db, path):
    db.jobs.add(sh(r"printf 'a\377b'", name="j"))
    launch(path)
    done = subprocess.run([*BALSAM, "--db", path, "log", "1"], capture_output=True, check=True)
    assert done.stdout == b"==> j.out <==\na\xffb"
    assert here.good("log", 1, "-o", "jsonl", db=path).json["line"] == r"a\xffb"


def test_a_job_that_has_not_run_says_where_to_ask(db, path):
    db.jobs.add(Job(command="true"))
    said = here.refused("log", 1, db=path, code=3)
    assert said == "job 1 (READY) has written nothing yet; 'balsam explain 1' says how it stands"
    assert here.refused("log", 7, db=path, code=3) == "there is no job 7"
    assert "number" in here.refused("log", 1, 2, db=path, code=2)


@pytest.fixture
def twice(db, path):
    """A job whose preprocess ran once and whose run failed once, then wrote errors only."""
    script = "test -e again || { touch again; echo first; echo one >&2; exit 1; }; echo second >&2"
    job = sh(script, name="j", max_retries=1, preprocess="echo before")
    db.jobs.add(job)
    launch(path)
    return job.id


def test_each_attempt_is_shown_on_request(twice, path):
    done = here.good("log", twice, db=path)
    assert done.out == "==> preprocess.log <==\nbefore\n==> j.err <==\nsecond\n"
    assert done.err == "attempts with output: 1, 2; --attempt N shows one\n"
    first = here.good("log", twice, "--attempt", 1, db=path)
    files = ("preprocess.log", "before"), ("j.out.1", "first"), ("j.err.1", "one")
    assert first.out == "".join(f"==> {name} <==\n{text}\n" for name, text in files)
    assert first.err == ""
    assert here.good("log", twice, "--attempt", 2, db=path).out == "==> j.err <==\nsecond\n"
    assert len(here.good("log", twice, "--attempt", 1, "-o", "ids", db=path).out.split()) == 3
    rows = here.good("log", twice, "--attempt", 1, "-o", "json", db=path).json
    assert [row["line"] for row in rows] == ["before", "first", "one"]


def test_an_attempt_without_output_names_those_that_have_some(twice, path, db):
    said = here.refused("log", twice, "--attempt", 3, db=path, code=3)
    assert said == f"job {twice} has no output of attempt 3; there is some of: 1, 2"
    db.jobs.add(Job(command="true", name="new"))
    assert here.refused("log", "last", "--attempt", 1, db=path, code=3).endswith("there is none of any")
    for words in (["launcher", "--attempt", 1], ["dbserver", "--attempt", 1], [twice, "-f", "--attempt", 1]):
        assert "--attempt" in here.refused("log", *words, db=path, code=2)


def test_a_job_is_followed_from_before_its_start_to_its_end(db, path, follow, tmp_path):
    go = tmp_path / "go"
    db.jobs.add(sh(f"echo one; while [ ! -e {go} ]; do sleep 0.1; done; printf two", name="j"))
    process = follow(1)
    assert process.stderr.readline() == "job 1 (READY) has written nothing yet; waiting for it\n"
    with subprocess.Popen([*BALSAM, "--db", path, "launcher", "--consume-all"], stderr=subprocess.DEVNULL):
        assert process.stdout.readline() == "==> j.out <==\n"
        assert process.stdout.readline() == "one\n"
        assert process.poll() is None
        go.touch()
    out, err = process.communicate(timeout=60)
    assert (out, err, process.returncode) == ("two", "", 0)


def test_ctrl_c_ends_following(db, path, follow):
    db.jobs.add(Job(command="true"))
    process = follow(1)
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (err, process.returncode) == ("", 130)


# ---- launchers


def test_the_newest_launcher_has_a_log_of_its_own(db, path):
    assert "balsam launcher" in here.refused("log", db=path, code=3)
    for name in ("first", "second"):
        db.jobs.add(sh("exit 3", name=name))
        launch(path)
    assert {file.name for file in (path / "log").glob("launcher*")} == {"launcher-1.log", "launcher-2.log"}
    for words in ((), ("launcher",), ("launcher", 2)):
        shown = here.good("log", *words, db=path).out
        assert "(second) failed: exit code 3" in shown
        assert "0 finished, 1 failed in" in shown
    assert "(first) failed" in here.good("log", "launcher", 1, "-n", 0, db=path).out
    assert here.refused("log", "launcher", 3, db=path, code=3).endswith("the newest is that of launcher 2")


def test_logs_of_launchers_are_pruned_but_for_those_that_may_live(db, path):
    log = path / "log"
    far = db.run(RegisterLauncher(host="far", pid=7, boot_id="b", process_start=0.0, lease_seconds=900))
    start = start_of(os.getpid())
    write_journal(db.directory, 5000, pid=os.getpid(), start=start)
    write_journal(db.directory, 5001, pid=os.getpid(), start=start + 1)
    numbers = [far, 5000, 5001, *range(9000, 9000 - KEPT_LOGS, -1)]  # from the oldest to the newest
    for at, number in enumerate(numbers):
        for name in (f"launcher-{number}.log", f"launcher-{number}.log.1"):
            (log / name).write_text("x")
            os.utime(log / name, (at, at))
    (log / "launcher-1x.log").touch()
    launch(path)
    left = {file.name for file in log.glob("launcher-*.log*")}
    own = f"launcher-{far + 1}.log"
    kept = [far, 5000, *numbers[3:]]
    assert left == {own, "launcher-1x.log", *(f"launcher-{n}.log{end}" for n in kept for end in ("", ".1"))}


def test_a_launcher_is_followed_until_it_ends(db, path, follow):
    db.jobs.add(Job(command="sleep 60", name="long"))
    with subprocess.Popen([*BALSAM, "--db", path, "launcher", "--consume-all"], stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: db.jobs.get(1).state == "RUNNING", what="the job")
        process = follow("launcher")
        assert process.stdout.readline() == "==> launcher-1.log <==\n"
        launcher.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert "ends: stopped by SIGTERM" in out
    assert (err, process.returncode) == ("", 0)


def test_following_ends_when_the_launcher_is_killed(db, path, follow):
    db.jobs.add(Job(command="sleep 10", name="long"))
    with subprocess.Popen([*BALSAM, "--db", path, "launcher", "--consume-all"], stderr=subprocess.DEVNULL) as launcher:
        wait_until(lambda: db.jobs.get(1).state == "RUNNING", what="the job")
        process = follow("launcher", 1)
        process.stdout.readline()
        launcher.kill()
    assert process.wait(timeout=60) == 0


# ---- the server


def test_the_server_is_followed_until_it_is_stopped(path):
    assert here.refused("log", "dbserver", db=path, code=3) == "no server has run yet: balsam dbserver"
    served = ServedDB(path)
    try:
        served.start()
        shown = here.good("log", "dbserver", "-n", 0, db=path).out
        assert "==> dbserver_" in shown
        assert "==> server_" in shown
        command = [*BALSAM, "--db", str(path), "log", "dbserver", "-f"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            process.stdout.readline()
            here.good("dbserver", "--stop", db=path)
            out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "stop" in out
    finally:
        served.close()
