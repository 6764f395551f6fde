"""The hooks that a backend may leave out, by a toy backend that is installed like a stranger's: a dist-info folder."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import pytest
from balsam_program import child

from balsam_core.errors import BackendError
from balsam_core.launcher import event_dispatcher as dispatcher_module
from balsam_core.launcher.event_dispatcher import EventDispatcher
from balsam_core.model.calls import Update
from balsam_core.model.states import State
from balsam_core.testing.tools import wait_until

COMMANDS = """
    import click

    @hookimpl
    def balsam_commands(group):
        @group.command()
        @click.argument("word")
        @click.pass_obj
        def echo(session, word):
            "Say a word and the DB."
            print(word, session.directory("toy").path)

        @group.command()
        @click.pass_obj
        def count(session):
            "Count the jobs."
            with session.open_db() as db:
                session.printer().one({"jobs": len(db.jobs.where().ids())}, "many")

        @group.command()
        @click.argument("kind")
        def fail(kind):
            from balsam_core.plugin import NotFound

            if kind == "own":
                raise NotFound("there is no\\nsuch thing")
            if kind == "click":
                raise click.UsageError("that is wrong")
            if kind == "system":
                raise PermissionError(13, "Permission denied", "/some/file")
            if kind == "exit":
                raise SystemExit(5)
            raise {"zero": ZeroDivisionError, "key": KeyError}[kind]("oh\\n\\x1b[31m" + "x" * 5000)

        @group.command()
        def seven():
            return 7

        @group.command()
        def true():
            return True
"""

EVENTS = """
    import json, os, sys, threading, time

    @hookimpl
    def balsam_job_event(events):
        how = os.environ.get("TOY_HEARS", "")
        assert threading.current_thread() is not threading.main_thread()
        if how == "hangs":
            threading.Event().wait()
        if how == "exits":
            sys.exit("bye")
        if how == "raises":
            raise (KeyError if events[0].transitions[-1][0] == "RUNNING" else ValueError)("not me")
        with open(os.environ["TOY_EVENTS"], "a") as file:
            for one in events:
                at = one.at.timestamp()
                told = [one.job_id, at, [list(transition) for transition in one.transitions], one.message, one.attempt]
                print(json.dumps(told), file=file)
"""

BULK = """
    import os

    @hookimpl
    def balsam_bulk_insert(connection, table, columns, rows):
        with open(os.environ["TOY_BULK"], "a") as file:
            print(table, len(rows), file=file)
        marks = ", ".join("?" * len(columns))
        statement = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        connection.connection.driver_connection.executemany(statement, rows)
"""


@pytest.fixture
def balsam(site, tmp_path):
    def run(*words, env=None, db="db", **settings):
        variables = {**site.environment, "XDG_STATE_HOME": str(tmp_path / "state"), **(env or {})}
        return child(*words, db=tmp_path / db, env=variables, **settings)

    return run


@pytest.fixture
def db(tmp_path):
    return tmp_path / "db"


def good(done):
    assert done.code == 0, done
    return done


def refused(done, code):
    """The line that the program ended with."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1
    return done.err.removeprefix("Error: ").rstrip("\n")


# ---- balsam_commands


@pytest.fixture
def toy(site, balsam, db):
    site.add("toy", more=COMMANDS)
    good(balsam("init", db, "--db-type", "toy"))
    return balsam


def test_a_plugin_adds_commands_under_its_db_type(toy, db):
    assert good(toy("toy", "echo", "hello")).out == f"hello {db}\n"
    good(toy("run", "--", "true"))
    assert good(toy("toy", "count", "-o", "json")).json == {"jobs": 1}
    assert good(toy("-o", "json", "toy", "count")).json == {"jobs": 1}


def test_the_commands_of_a_plugin_have_a_help(toy):
    done = good(toy("toy", "--help"))
    assert "Commands for Toy, from acme-toy 1.0." in done.out
    assert "Say a word and the DB." in done.out
    assert "--db PATH" in good(toy("toy", "echo", "--help")).out
    alone = toy("toy")
    assert (alone.code, alone.out) == (2, "")
    assert "Say a word" in alone.err


def test_what_a_command_of_a_plugin_returns_is_the_exit_code(toy):
    assert toy("toy", "seven").code == 7
    assert toy("toy", "true").code == 0
    assert toy("toy", "fail", "exit").code == 5


def test_what_a_command_of_a_plugin_raises_is_one_line(toy):
    assert refused(toy("toy", "fail", "own"), 3) == "there is no such thing"
    assert "that is wrong" in refused(toy("toy", "fail", "click"), 2)
    assert "no such command" in refused(toy("toy", "nonsense"), 2).lower()
    assert refused(toy("toy", "fail", "system"), 1) == "'/some/file': permission denied"
    for kind, name in (("zero", "ZeroDivisionError"), ("key", "KeyError")):
        line = refused(toy("toy", "fail", kind), BackendError.exit_code)
        assert line.startswith(f"acme-toy 1.0 failed in balsam toy: {name}: ")
        assert "tell the package's authors" in line
        assert "\x1b" not in line
    assert "Traceback" in toy("-v", "toy", "fail", "zero").err
    assert json.loads(toy("-o", "json", "toy", "fail", "own").err)["error"]["code"] == "not-found"


def test_a_command_of_a_plugin_refuses_the_db_of_another(toy, tmp_path):
    good(toy("init", tmp_path / "other", "--db-type", "sqlite"))
    assert "is a DB of type sqlite, not toy" in refused(toy("toy", "echo", "x", "--db", tmp_path / "other"), 4)


def test_a_plugin_without_commands_and_one_that_is_missing_say_so(toy):
    assert "adds no commands for the db type sqlite" in refused(toy("sqlite3", "x"), 2)
    with_pip_line = refused(toy("postgres", "x"), 12) if find_spec("balsam_postgres") is None else "balsam-postgres"
    assert "balsam-postgres" in with_pip_line
    assert "there is no command 'toi'" in refused(toy("toi", "x"), 2)


def test_a_plugin_replaces_no_command_of_the_core(site, balsam, db):
    site.add("ls", more=COMMANDS)
    good(balsam("init", db))
    assert good(balsam("ls", "-o", "json")).json == []


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        ("raise ZeroDivisionError('oh')", "acme-toy 1.0 failed in balsam_commands: ZeroDivisionError: oh"),
        ("return 42", "acme-toy 1.0 is broken: balsam_commands returned int"),
        ("group.commands = None", "acme-toy 1.0 failed in balsam toy: "),
        ("group.commands = {'a': 3}", "acme-toy 1.0 failed in balsam toy: "),
        ("raise SystemExit(0)", "acme-toy 1.0 failed in balsam_commands: SystemExit: 0"),
    ],
)
def test_a_hook_that_misbehaves_is_told_of_its_plugin(site, balsam, hook, words):
    site.add("toy", more=f"@hookimpl\ndef balsam_commands(group):\n    {hook}\n")
    assert refused(balsam("toy", "--help"), BackendError.exit_code).startswith(words)


def test_other_commands_pay_nothing_for_the_commands_of_plugins(site, balsam, db):
    site.add("toy", "raise SystemExit('I was loaded')")
    good(balsam("init", db))
    assert "'balsam TYPE --help'" in good(balsam("--help")).out
    good(balsam("ls"))
    code = "import sys; from balsam_core.cli import main; main(sys.argv[1:]); print('pluggy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"],
        env={**os.environ, **site.environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.endswith("\nFalse\n")


# ---- balsam_job_event


@pytest.fixture
def hearing(site, balsam, db):
    site.add("toy", more=EVENTS)
    good(balsam("init", db, "--db-type", "toy"))
    good(balsam("run", "--wf", "w", "--", "true"))
    good(balsam("run", "--wf", "w", "--", "false"))
    return balsam


def log_of(db):
    return "".join(path.read_text() for path in sorted((db / "log").glob("launcher-*.log")))


def launch(balsam, tmp_path, **variables):
    env = {"TOY_EVENTS": str(tmp_path / "events"), **variables}
    done = balsam("launcher", "--consume-all", "-o", "json", env=env)
    assert done.code == 10, done  # a job fails
    return done.json


def test_the_plugin_hears_what_a_launcher_records(hearing, db, tmp_path):
    done = launch(hearing, tmp_path)
    assert (done["finished"], done["failed"]) == (1, 1)
    told = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    for job in (1, 2):
        history = good(hearing("show", job, "-o", "json")).json["history"]
        recorded = [one for one in history if one["attempt"]]  # not what happened before the launcher came
        mine = [
            (at - age, state, attempt)
            for who, at, transitions, _, attempt in told
            if who == job
            for state, age in transitions
        ]
        assert [one[1:] for one in mine] == [(one["state"], one["attempt"]) for one in recorded]
        assert "".join(one[3] for one in told if one[0] == job) == "".join(one["message"] for one in recorded)
        for one, other in zip(mine, recorded, strict=True):
            assert abs(one[0] - datetime.fromisoformat(other["at"]).timestamp()) < 2.0


@pytest.mark.parametrize(("how", "words"), [("raises", "ValueError: not me"), ("exits", "SystemExit")])
def test_a_plugin_that_raises_harms_no_launcher(hearing, db, tmp_path, how, words):
    done = launch(hearing, tmp_path, TOY_HEARS=how)
    assert (done["finished"], done["failed"]) == (1, 1)
    warnings = [line for line in log_of(db).splitlines() if "an event was lost" in line]
    assert 1 <= len(warnings) <= 2
    assert words in log_of(db)


def test_a_plugin_that_hangs_delays_a_launcher_by_two_seconds(hearing, db, tmp_path):
    begin = time.monotonic()
    done = launch(hearing, tmp_path, TOY_HEARS="hangs")
    assert (done["finished"], done["failed"]) == (1, 1)
    assert time.monotonic() - begin < 30.0
    assert "balsam_job_event has not ended in time" in log_of(db)


def update(job):
    return Update(job=job, attempt=1, transitions=[(State.RUNNING, 0.0)])


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_a_slow_plugin_costs_a_bounded_number_of_events_and_no_time(monkeypatch, caplog):
    monkeypatch.setattr(dispatcher_module, "MOST_QUEUED", 10)
    gate = threading.Event()
    heard = []

    def hear(events):
        assert gate.wait(60.0)
        heard.extend(one.job_id for one in events)

    dispatcher = EventDispatcher(hear, NOW)
    dispatcher.add([update(1)])
    wait_until(lambda: not dispatcher._queue, "the plugin to be called")
    begin = time.monotonic()
    for number in range(2, 1002):
        dispatcher.add([update(number)])
    assert time.monotonic() - begin < 5.0
    gate.set()
    dispatcher.close()
    assert heard == list(range(1, 12))
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "990 events" in caplog.text


def test_each_kind_of_fault_is_logged_once(caplog):
    def hear(events):
        raise (ValueError if events[0].job_id % 2 else KeyError)("no")

    dispatcher = EventDispatcher(hear, NOW)
    for number in range(10):
        dispatcher.add([update(number)])
        wait_until(lambda: not dispatcher._queue, "the plugin to be called")
    dispatcher.close()
    assert 1 <= len([one for one in caplog.records if one.levelno == logging.WARNING]) <= 2


def test_updates_without_a_state_are_no_events():
    heard = []
    dispatcher = EventDispatcher(heard.extend, NOW)
    dispatcher.add([Update(job=1, attempt=1, release=True), update(2)])
    dispatcher.close()
    assert [one.job_id for one in heard] == [2]
    assert heard[0].at >= NOW


def test_nothing_is_started_for_a_backend_without_the_hook(tmp_path):
    from balsam_core.admin.initialise import initialise
    from balsam_core.launcher.event_dispatcher import open_dispatcher

    db = initialise(tmp_path / "db").db
    from balsam_core import open_db

    threads = threading.active_count()
    with open_db(db.path) as opened, open_dispatcher(opened) as dispatcher:
        assert dispatcher is None
        assert threading.active_count() == threads


# ---- balsam_bulk_insert, balsam_server_policy and balsam_warnings


def test_many_jobs_go_through_the_bulk_insert(site, balsam, db, tmp_path):
    site.add("toy", more=BULK)
    env = {"TOY_BULK": str(tmp_path / "bulk")}
    good(balsam("init", db, "--db-type", "toy"))
    code = """
from balsam_core import Job, open_db

with open_db() as db:
    db.jobs.add([Job(command="true", workflow="w", parameters={"x": x}, environ={"A": "é"}) for x in range(200)])
    assert [job.parameters["x"] for job in db.jobs.where(workflow="w").order_by("id")] == list(range(200))
    assert next(iter(db.jobs.where())).environ == {"A": "é"}
"""
    variables = {**os.environ, **site.environment, **env, "BALSAM_DB_PATH": str(db)}
    subprocess.run([sys.executable, "-W", "error", "-c", code], env=variables, check=True, timeout=60)
    lines = Path(tmp_path / "bulk").read_text().splitlines()
    assert "jobs 200" in lines
    assert "job_events 200" in lines


def test_a_db_may_need_no_server_though_its_type_does(site, balsam, db):
    site.add("toy", more="@hookimpl\ndef balsam_server_policy(db):\n    return ServerPolicy.NONE\n")
    plugin = site.path / "acme_toy_plugin.py"
    plugin.write_text(plugin.read_text().replace("server=ServerPolicy.NONE", "server=ServerPolicy.REQUIRED"))
    good(balsam("init", db, "--db-type", "toy"))
    good(balsam("run", "--", "true"))
    assert len(good(balsam("ls", "-o", "ids")).ids) == 1
    done = balsam("dbserver", "--path", db)
    assert "need" in done.out + done.err
    assert not done.err.startswith("Traceback")


def test_a_plugin_can_warn_in_the_status(site, balsam, db):
    site.add("toy", more='@hookimpl\ndef balsam_warnings(db):\n    return ["nearly full\\x1b[31m"]\n')
    good(balsam("init", db, "--db-type", "toy"))
    assert good(balsam("status", "-o", "json")).json["warnings"] == ["nearly full\x1b[31m"]
    text = good(balsam("status")).out
    assert "warning    nearly full" in text
    assert "\x1b" not in text
    plugin = site.path / "acme_toy_plugin.py"
    plugin.write_text(plugin.read_text().replace('["nearly', '[5, "nearly'))
    done = balsam("status")
    assert done.code != 0
    assert "balsam_warnings" in done.err
