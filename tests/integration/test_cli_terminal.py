"""What the program does on a terminal: it cuts, colours and asks, and only there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

import pytest
from balsam_program import BALSAM, TIMEOUT, here

from balsam_core import Job, open_db
from balsam_core.testing.tools import wait_until

WIDTH = 70
CTRL_C = "\x03"


@pytest.fixture
def db(path):
    """The path of a DB with three jobs."""
    with open_db(path) as opened:
        opened.jobs.add([Job(command="true", name=name) for name in ("short", "n" * 500, "日本語" * 100)])
        opened.jobs.where(name="short").kill()
    return path


def test_a_launcher_whose_terminal_is_closed_gives_its_jobs_back_and_ends_by_sighup(db):
    with open_db(db) as opened:
        opened.jobs.remove()
        opened.jobs.add([Job(command="sleep 600") for _ in range(2)])
        pid, terminal = pty.fork()
        if pid == 0:
            words = ["--db", str(db), "launcher", "--consume-all", "--max-ranks-per-node", "2"]
            os.execv(BALSAM[0], [*BALSAM, *words])
        wait_until(lambda: opened.jobs.states() == {"RUNNING": 2}, "the jobs' start")
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
        assert opened.jobs.states() == {"RESTART_READY": 2}


def on_a_terminal(*words, db, answer="", env=None):
    """Run the program on a terminal; return its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    variables = {**os.environ, "TERM": "xterm", "BALSAM_DB_PATH": str(db), **(env or {})}
    program = subprocess.Popen(
        [*BALSAM, *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=variables,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  (so that Ctrl-C reaches it)
    )
    os.close(theirs)
    got, sent = b"", ""
    deadline = time.monotonic() + TIMEOUT
    try:
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1.0)[0]:
                if sent == CTRL_C:  # as a person would: Python misses one between its prompt and its reading
                    os.write(ours, CTRL_C.encode())
                continue
            try:
                some = os.read(ours, 65536)
            except OSError:  # the program's side is closed
                break
            if not some:
                break
            got += some
            if answer and b"[y/N]: " in got:
                os.write(ours, answer.encode())
                sent, answer = answer, ""
        return program.wait(TIMEOUT), got.decode()
    finally:
        program.kill()
        program.wait()
        os.close(ours)


def test_a_table_fits_the_terminal(db):
    code, got = on_a_terminal("ls", db=db, env={"NO_COLOR": "1"})
    assert code == 0
    lines = got.split("\r\n")
    assert len([line for line in lines if line]) == 4
    assert all(len(line) <= WIDTH for line in lines)
    assert "…" in lines[2]


@pytest.mark.parametrize(
    ("env", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({"NO_COLOR": ""}, True)]
)
def test_states_have_colours_unless_unwanted(env, coloured, db):
    _, got = on_a_terminal("ls", db=db, env=env)
    assert ("\x1b[33mUSER_KILLED\x1b[0m" in got) == coloured
    assert "\x1b" not in here.good("ls", db=db).out


def test_formats_for_programs_are_the_same_on_a_terminal(db):
    _, got = on_a_terminal("ls", "-o", "csv", db=db)
    assert got.replace("\r\n", "\n") == here.good("ls", "-o", "csv", db=db).out


@pytest.mark.parametrize(
    ("answer", "left", "exit_code"), [("y\n", 2, 0), ("n\n", 3, 0), ("\n", 3, 0), ("\x04", 3, 1), (CTRL_C, 3, 1)]
)
def test_rm_asks_first(answer, left, exit_code, db):
    code, got = on_a_terminal("rm", "1", db=db, answer=answer)
    assert (code, "Remove 1 job from" in got) == (exit_code, True)
    assert "Traceback" not in got
    assert len(here.good("ls", "-o", "ids", db=db).ids) == left
