"""What the program does with bad input: one clear line, the exit code of its class, and nothing changed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from balsam_program import BALSAM, TIMEOUT, child, here

from balsam_core import Job, open_db

HOSTILE = {
    "newline": "a\nb\r\nc",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "climb": "../../etc/passwd",
    "dash": "-rf",
    "long": "x" * 10_000,
    "emoji": "🌲💥 e\u0301",
    "direction": "abc\u202egpj.exe",
    "quotes": "'\"`$(touch x);{y}%s\\",
    "blank": " ",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database to copy, with an app and two jobs, one behind the other."""
    path = tmp_path_factory.mktemp("bad") / "db"
    here.good("init", path)
    here.good("app", "--name", "sim", "--executable", "sim.x {x}", db=path)
    with open_db(path) as db:
        parent = Job(command="true", name="parent")
        db.jobs.add([parent, Job(command="true", name="child", parents=[parent])])
    return path


@pytest.fixture
def db(tmp_path, made):
    return shutil.copytree(made, tmp_path / "db")


def contents(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def jobs(db):
    return here.good("ls", "-o", "json", db=db).json


# ---- the database


def test_an_unknown_db_type_names_the_installed_ones(tmp_path):
    message = child.refused("init", tmp_path / "new", "--db-type", "oracle", code=12)
    assert "installed: " in message
    assert "sqlite" in message
    assert not (tmp_path / "new").exists()


def test_a_path_that_is_a_file(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    for words in (["init", file], ["--db", file, "ls"], ["ls", "--db", file], ["--db", file / "deeper", "ls"]):
        assert str(file) in child.refused(*words, code=8)
    assert "file" in child.refused("init", file / "deeper", code=8)
    assert file.read_text() == "mine"


def test_a_path_without_a_db(tmp_path):
    assert "balsam init" in here.refused("ls", code=8, db=tmp_path / "missing")
    assert "balsam init" in here.refused("ls", code=8, db=tmp_path)
    (tmp_path / "thesis.tex").write_text("mine")
    assert "not empty" in here.refused("init", tmp_path, code=8)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("place", ["/proc/testdb", "/sys/testdb", "/dev/null/testdb"])
def test_a_path_that_can_not_be_written(place):
    assert place in here.refused("init", place, code=8)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_to_write(tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "permission" in here.refused("init", tmp_path / "closed" / "db", code=8)


@pytest.mark.parametrize("words", [["ls"], ["run", "--", "true"], ["status"], ["kill", "all"]], ids=" ".join)
@pytest.mark.parametrize("damage", ["truncated", "foreign", "empty", "garbage"])
def test_a_damaged_database_file_is_refused_and_left_alone(words, damage, db):
    file = db / "db.sqlite3"
    for more in ("-wal", "-shm"):
        file.with_name(file.name + more).unlink(missing_ok=True)
    if damage == "foreign":
        file.unlink()
        with closing(sqlite3.connect(file)) as other:
            other.execute("CREATE TABLE mine (x)")
    else:
        whole = file.read_bytes()
        file.write_bytes({"truncated": whole[: len(whole) // 2], "empty": b"", "garbage": b"garbage" * 1000}[damage])
    before = contents(db)
    here.refused(*words, code=8, db=db)
    here.refused("init", db, code=8)
    assert contents(db) == before


@pytest.mark.parametrize("text", [b"", b"garbage", b"\xff\xfe", b"{}garbage", b'{"port": "x"}', b"[" * 10_000])
def test_a_garbage_address_is_refused(text, db):
    (db / "dbwriter_address").write_bytes(text)
    before = contents(db)
    line = here.refused("run", "--", "true", code=6, db=db)
    assert "dbwriter_address" in line
    assert f"balsam init {db}" in line
    status = here("status", db=db)
    assert status.code == 6
    assert f"balsam init {db}" in status.out
    assert contents(db) == before


def test_a_directory_in_place_of_the_address_is_refused_and_left_alone(db):
    place = db / "dbwriter_address"
    place.unlink()
    place.mkdir()
    (place / "mine").touch()
    assert f"{place} can't be read" in here.refused("ls", code=6, db=db)
    status = here("status", db=db)
    assert (status.code, "move it away" in status.out) == (6, True)
    for words in (["dbserver"], ["dbserver", "--stop"], ["dbserver", "--reset"], ["init", db]):
        line = child.refused(*words, code=8, db=None if words[0] == "init" else db)
        assert line.count(str(place)) == 1
        assert "move it away" in line
    assert (place / "mine").exists()
    shutil.rmtree(place)
    here.good("init", db)
    assert len(jobs(db)) == 2


def test_a_pipe_in_place_of_the_address_is_replaced(db):
    place = db / "dbwriter_address"
    place.unlink()
    os.mkfifo(place)
    assert f"{place} can't be read: is no regular file" in here.refused("ls", code=6, db=db)
    here.good("init", db)
    assert len(jobs(db)) == 2


def test_a_newer_schema_is_refused(db):
    with closing(sqlite3.connect(db / "db.sqlite3")) as connection:
        connection.execute("UPDATE schema_version SET version_num = '9999'")
        connection.commit()
    for words in (["ls"], ["run", "--", "true"], ["status"], ["init", db]):
        assert "9999" in child.refused(*words, code=9, db=db)


def test_a_newer_directory_is_refused(db):
    config = db / "balsam.toml"
    config.write_text(config.read_text().replace("format = 1", "format = 2"))
    assert "upgrade" in here.refused("ls", code=9, db=db)


def test_a_wrong_settings_file_is_named(tmp_path):
    (tmp_path / "balsam").mkdir()
    (tmp_path / "balsam" / "settings.toml").write_text("default_db_path = 3\n")
    assert "settings.toml" in here.refused("ls", code=13, env={"XDG_CONFIG_HOME": str(tmp_path)})


# ---- jobs


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (["dep", "2", "1"], 5, "circle"),
        (["dep", "1", "1"], 5, "own parent"),
        (["dep", "1", "99"], 3, "no job 99"),
        (["dep", "99", "1"], 3, "no job 99"),
        (["dep", "all", "1"], 2, "does not name one job"),
        (["job", "--app", "nope"], 3, "no app 'nope'"),
        (["job"], 2, "--app and --command"),
        (["job", "--app", "sim", "--command", "true"], 2, "--app and --command"),
        (["job", "--command", "  "], 5, "command"),
        (["job", "--command", "echo 'a"], 5, "quotation"),
        (["job", "--command", "echo", "--args", "'a"], 5, "args: can't split"),
        (["job", "--command", "echo", "--postprocess", "'a"], 5, "postprocess: can't split"),
        (["job", "--command", "true", "--input-files", "../*.x"], 5, "input_files: the pattern '../*.x' holds a slash"),
        (["job", "--command", "true", "--stage-out-files", "'a"], 2, "--stage-out-files: a quotation"),
        (["job", "--command", "true", "--stage-out", "/o"], 2, "--stage-out and --stage-out-files go together"),
        (["job", "--command", "true", "--stage-out-files", "*"], 2, "--stage-out and --stage-out-files go together"),
        (["job", "--command", "true", "--env", "A"], 2, "KEY=VALUE"),
        (["job", "--command", "true", "--data", '{"x": NaN}'], 2, "JSON object"),
        (["job", "--command", "true", "--num-nodes", "0"], 2, "--num-nodes"),
        (["job", "--command", "true", "--num-nodes", "two"], 2, "--num-nodes"),
        (["job", "--command", "true", "--num-nodes", "2.5"], 2, "--num-nodes"),
        (["job", "--command", "true", "--ranks-per-node", "99999999999999999999"], 2, "larger"),
        (["job", "--command", "true", "--gpus-per-rank", "nan"], 2, "--gpus-per-rank"),
        (["job", "--command", "true", "--priority", "3000000000"], 2, "--priority"),
        (["job", "--command", "true", "--param", "x"], 2, "KEY=VALUE"),
        (["job", "--command", "true", "--param", "x=1", "-p", "x=2"], 2, "twice"),
        (["job", "--command", "true", "--data", '{"x": 99999999999999999999}'], 5, "64-bit"),
        (["job", "--command", "true", "--data", "[1]"], 2, "JSON object"),
        (["job", "--command", "true", "--env", "=x"], 2, "KEY=VALUE"),
        (["job", "--command", "true", "--parent", "99"], 3, "no job 99"),
        (["job", "--command", "true", "--parent", "x"], 2, "selector"),
        (["job", "--command", "true", "--name", "x" * 10_001], 5, "10001 characters"),
        (["job", "--command", "true", "--wf", ""], 5, "workflow"),
        (["job", "--command", "true", "--wf", "w" * 256], 5, "workflow"),
        (["job", "--command", "true", "--key", ""], 5, "key"),
        (["job", "--command", "true", "--name", b"\xff".decode(errors="surrogateescape")], 5, "UTF-8"),
        (["run"], 2, "CMD"),
        (["run", "--num-nodes", "-1", "--", "true"], 2, "--num-nodes"),
        (["app", "--name", "a"], 2, "--executable"),
        (["app", "--name", "", "--executable", "a"], 5, "empty"),
        (["app", "--name", "a", "--executable", ""], 5, "empty"),
        (["app", "--name", "sim", "--executable", "other"], 4, "--replace"),
        (["ls", "--limit", "-1"], 2, "--limit"),
        (["ls", "--limit", "many"], 2, "--limit"),
        (["ls", "--state", "FINISHED"], 2, "JOB_FINISHED"),
        (["ls", "--fields", "nmae"], 2, "name"),
        (["ls", "--fields", ""], 2, "no field"),
        (["ls", "--id", "99"], 3, "no job 99"),
        (["ls", "--id", "wf:nope"], 3, "no jobs in workflow 'nope'"),
        (["ls", "--name", b"\xff".decode(errors="surrogateescape")], 5, "utf-8"),
        (["ls", "nonsense"], 2, "nonsense"),
        (["ls", "apps", "--state", "READY"], 2, "--state"),
        (["ls", "wf", "--history"], 2, "--history"),
        (["ls", "--by-states", "--fields", "id"], 2, "--fields"),
        (["ls", "--nonsense"], 2, "--nonsense"),
        (["ls", "-o", "xml"], 2, "xml"),
        (["show", "99"], 3, "no job 99"),
        (["show", "all"], 2, "does not name one job"),
        (["kill"], 2, "SELECTOR"),
        (["kill", "1,99"], 3, "no job 99"),
        (["kill", "1", "98-99"], 3, "no jobs 98-99"),
        (["kill", "1", "x"], 2, "selector"),
        (["rm", "1"], 2, "--yes"),
        (["rm", "1,99", "--yes"], 3, "no job 99"),
        (["rm", "1", "--yes"], 4, "have not finished and need it"),
        (["rm", "apps", "sim", "nope", "--yes"], 3, "no app 'nope'"),
        (["rm", "apps", "sim", "--files", "--yes"], 2, "--files"),
        (["retry", "0"], 2, "begin at 1"),
        (["plugins", "check", "oracle"], 12, "installed"),
        (["init"], 2, "PATH"),
        (["--db", "", "ls"], 8, "empty"),
        (["--db", "~nobodyatall/db", "ls"], 8, "home"),
        (["nonsense"], 2, "no command"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_one_line_the_right_code_and_nothing_written(words, code, part, made):
    before = contents(made)
    assert part in here.refused(*words, code=code, db=made)
    after = contents(made)
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    # Opening a WAL database writes its shared memory file, which holds no data.
    assert changed <= {"db.sqlite3-shm"}


@pytest.mark.parametrize(
    "words", [["run", "--", "true"], ["kill", "all"], ["dep", "1", "2"], ["rm", "2", "--yes"]], ids=" ".join
)
def test_a_wrong_output_format_is_refused_before_anything_changes(words, db):
    before = jobs(db)
    assert "BALSAM_OUTPUT" in here.refused(*words, code=2, db=db, env={"BALSAM_OUTPUT": "xml"})
    assert jobs(db) == before


def test_in_json_mode_errors_are_one_object_on_stderr(made):
    done = child("show", "99", "-o", "json", db=made)
    assert (done.code, done.out) == (3, "")
    assert json.loads(done.err) == {"error": {"code": "not-found", "message": "there is no job 99", "exit_code": 3}}


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_are_stored_as_they_are_and_shown_harmlessly(name, db):
    workflow = name[:255]
    here.good("job", f"--name={name}", f"--wf={workflow}", "--command", "true", "-p", f"x={name}", db=db)
    got = jobs(db)[-1]
    assert (got["name"], got["workflow"], got["parameters"]) == (name, workflow, {"x": name})
    for words in (["ls"], ["ls", "wf"], ["show", "last"], ["ls", "--history"], ["ls", "wf", "-o", "ids"]):
        out = here.good(*words, db=db).out
        assert all(line.isprintable() for line in out.splitlines() if line)
        assert "\r" not in out
        assert "\x1b" not in out
    assert len(here.good("ls", db=db).out.splitlines()) == 4
    assert here.good("ls", f"--name={name}", "-o", "ids", db=db).ids == [3]
    assert here.good("kill", f"wf:{workflow}", "-o", "ids", db=db).ids == [3]
    place = here.good("show", "last", "-o", "json", db=db).json["workdir"]
    assert os.path.realpath(place).startswith(os.path.realpath(db / "data") + "/")


def test_hostile_paths_are_shown_on_one_line(tmp_path):
    here.refused("ls", code=8, db=tmp_path / "a\nb\x1b[2J")
    path = tmp_path / "new\nline"
    assert here.good("init", path).out.count("\n") == 1
    assert here.good("run", "--", "true", db=path).ids == [1]
    assert here.good("status", db=path).out.count("\n") == 5


ODD_NAMES = [b"a b", b"it's", b"$(touch x)", b"\xff\\'\n", "\u00e9\u0301 \u202e".encode(), b"\xe9a1"]


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
def test_what_a_message_says_can_be_pasted_into_a_shell(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    line = child.refused("ls", code=8, db=path)
    assert line.isprintable()
    words = line.partition("with: balsam ")[2]
    argv = " ".join(map(shlex.quote, BALSAM))
    subprocess.run(["bash", "-c", f"{argv} {words}"], check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL)
    assert (path / "balsam.toml").exists()
    (path / "dbwriter_address").unlink()
    words = (
        child.refused("ls", code=6, db=path).partition("; if that lasts, balsam ")[2].removesuffix(" writes it again")
    )
    subprocess.run(["bash", "-c", f"{argv} {words}"], check=True, timeout=TIMEOUT, stdout=subprocess.DEVNULL)
    assert child.good("ls", "-o", "ids", db=path).ids == []


# ---- output that nobody reads


def program(*words, db, **settings):
    return subprocess.Popen(
        [*BALSAM, *words],
        env={**os.environ, "BALSAM_DB_PATH": str(db)},
        stderr=subprocess.PIPE,
        **settings,
    )


@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "-o", "json"], ["--help"], ["ls", "--help"], ["show", "1"]], ids=" ".join
)
def test_a_reader_that_went_away_is_no_error(words, made):
    reading, writing = os.pipe()
    os.close(reading)
    running = program(*words, db=made, stdout=writing)
    os.close(writing)
    assert running.communicate(timeout=TIMEOUT)[1] == b""
    assert running.returncode == 141


def test_ls_into_head_is_quiet(made, tmp_path):
    with open_db(shutil.copytree(made, tmp_path / "db")) as db:
        db.jobs.add(Job(command="true", name="n" * 100) for _ in range(3_000))  # far more than a pipe holds
    for form in ("table", "json", "csv", "ids"):
        running = program("ls", "--limit", "0", "-o", form, db=tmp_path / "db", stdout=subprocess.PIPE)
        assert running.stdout is not None
        assert running.stdout.readline()
        running.stdout.close()
        assert running.stderr is not None
        assert running.stderr.read() == b""
        running.stderr.close()
        assert running.wait(TIMEOUT) in {0, 141}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "words", [["ls"], ["ls", "-o", "csv"], ["ls", "-o", "ids"], ["show", "1"], ["--help"]], ids=" ".join
)
def test_a_full_disk_under_the_output_is_one_line(words, made):
    with Path("/dev/full").open("wb") as full:
        running = program(*words, db=made, stdout=full)
        message = running.communicate(timeout=TIMEOUT)[1].decode()
    assert running.returncode == 1
    assert message.startswith("Error: ")
    assert "no space left" in message.lower()
    assert message.count("\n") == 1


CHANGES = {
    "app": (["app", "--name", "new", "--executable", "true"], "app 'new' is defined"),
    "job": (["job", "--name", "x", "--command", "true"], "Job 3 is added"),
    "job json": (["job", "--name", "x", "--command", "true", "-o", "json"], "Job 3 is added"),
    "run": (["run", "--", "true"], "Job 3 is added"),
    "dep": (["dep", "1", "2"], "job 2 waited for job 1 already"),
    "kill": (["kill", "all"], "killed 2 jobs"),
    "retry": (["retry", "all"], "retried no job"),
    "rm": (["rm", "2", "--yes"], "removed 1 job"),
    "rm apps": (["rm", "apps", "sim", "--yes"], "removed 1 app"),
    "launcher": (["launcher", "--consume-all"], "2 finished, 0 failed"),
    "init": (["init", "new"], "created "),
    "backup": (["backup", "saved"], "saved "),
    "restore": (["restore", "earlier", "new"], "restored "),
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_whose_answer_can_not_be_printed_says_that_it_is_made(name, db, tmp_path):
    words, text = CHANGES[name]
    here.good("backup", tmp_path / "earlier", db=db)
    with Path("/dev/full").open("wb") as full:
        running = program(*words, db=db, stdout=full, cwd=tmp_path)
        message = running.communicate(timeout=TIMEOUT)[1].decode().splitlines()[-1]
    assert running.returncode == 7, message
    assert text in message
    assert "; only the answer can't be printed: no space left on device" in message
    if words[0] in {"job", "run"}:
        assert len(jobs(db)) == 3


def test_closed_standard_streams_harm_nothing(made, tmp_path):
    db = shutil.copytree(made, tmp_path / "db")
    command = f'"{sys.executable}" -m balsam_core.cli run -- true <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", command], env={**os.environ, "BALSAM_DB_PATH": str(db)}, check=False, timeout=TIMEOUT
    )
    assert done.returncode == 0
    assert len(jobs(db)) == 3


def test_interruption_is_quiet_and_130(made):
    # Waiting for ids on stdin is where a person would press Ctrl-C.
    running = program("kill", "-", db=made, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert running.stdin is not None
    running.stdin.write(b"1\n" * 100_000)  # more than a pipe holds: when this returns, the program reads
    running.stdin.flush()
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=TIMEOUT)
    assert (running.returncode, out, err) == (130, b"", b"")
