"""The commands on a real SQLite database. Where the process matters, it is one of its own (``child``)."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from datetime import UTC, datetime, timedelta

import pytest
from balsam_program import child, here

from balsam_core import Job, open_db
from balsam_core.cli.records import JOB_FIELDS
from balsam_core.errors import DBDirError
from balsam_core.model.job import FIELDS, GIVEN_BY_DATABASE

SEVERAL = 150  # more than the default table shows


@pytest.fixture(scope="module")
def full_db(tmp_path_factory):
    """A database with jobs in two workflows that nobody changes."""
    path = tmp_path_factory.mktemp("cli") / "full"
    here.good("init", path)
    here.good("app", "--name", "sim", "--executable", "sim.x {x}", "--env", "A=1", "--description", "simulate", db=path)
    with open_db(path) as db:
        first = Job(app="sim", name="first", workflow="scan", parameters={"x": 0.5}, data={"tag": "é"})
        rest = [Job(command="true", name=f"job-{n}", workflow="bulk") for n in range(SEVERAL)]
        child = Job(app="sim", name="child", workflow="scan", parameters={"x": "a b"}, parents=[first], priority=3)
        db.jobs.add([first, *rest, child])
        db.jobs.where(name="job-3").kill("too slow")
    return path


@pytest.fixture
def db(path):
    return path


# ---- which database


def test_init_creates_and_refreshes(tmp_path):
    path = tmp_path / "a" / "testdb"
    done = child.good("init", path, "--db-type", "sqlite3", "-o", "json").json
    assert (done["path"], done["db_type"], done["created"]) == (str(path), "sqlite", True)
    names = {entry.name for entry in path.iterdir()}
    assert names >= {"db.sqlite3", "dbwriter_address", "data", "log", "balsam.toml", "keys"}
    again = child.good("init", path, "-o", "json").json
    assert (again["id"], again["created"], again["migrated"]) == (done["id"], False, False)
    assert "up to date" in child.good("init", path).out


def test_the_database_is_chosen_by_option_before_or_after_the_command_then_by_variable(tmp_path, empty_db, full_db):
    assert child.good("ls", "--id", 1, "-o", "ids", db=full_db).ids == [1]
    assert child.good("--db", full_db, "ls", "--id", 1, "-o", "ids", db=empty_db).ids == [1]
    assert child.good("ls", "--id", 1, "-o", "ids", "--db", full_db, db=empty_db).ids == [1]
    assert child.good("ls", "--id", 1, "-o", "ids", f"--db={full_db}", db=tmp_path / "missing").ids == [1]


def test_a_tilde_that_the_shell_left_is_expanded(tmp_path):
    home = {"HOME": str(tmp_path)}
    child.good("init", "~/testdb", env=home)
    assert (tmp_path / "testdb" / "db.sqlite3").exists()
    child.good("ls", db="~/testdb", env=home)
    child.good("--db=~/testdb", "ls", env=home)


def test_the_default_db_is_made_on_first_use(tmp_path):
    home = {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path / "share"), "XDG_CONFIG_HOME": str(tmp_path / "conf")}
    assert child.good("run", "--", "true", env=home).ids == [1]
    assert child.good("ls", "-o", "ids", env=home).ids == [1]
    shown = child.good("status", "-o", "json", env=home).json
    assert shown["source"] == "default"
    assert shown["path"] == str(tmp_path / "share" / "balsam" / "default_balsamdb")


def test_settings_choose_the_db_and_config_show_says_so(tmp_path, full_db):
    (tmp_path / "balsam").mkdir()
    (tmp_path / "balsam" / "settings.toml").write_text(f'default_db_path = "{full_db}"\n')
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    rows = {row["setting"]: row for row in here.good("config", "show", "-o", "json", env=env).json}
    assert rows["db"]["value"] == rows["default_db_path"]["value"] == str(full_db)
    assert "settings.toml" in rows["db"]["source"]
    rows = {row["setting"]: row for row in here.good("config", "show", "-o", "json", db="/else", env=env).json}
    assert (rows["db"]["value"], rows["db"]["source"]) == ("/else", "BALSAM_DB_PATH")


def test_status_tells_how_the_db_stands(full_db):
    shown = here.good("status", "-o", "json", db=full_db).json
    assert shown["jobs"] == {"READY": SEVERAL, "AWAITING_PARENTS": 1, "USER_KILLED": 1}
    assert (shown["db_type"], shown["server"], shown["launchers"]) == ("sqlite", None, [])
    text = here.good("status", db=full_db).out
    assert str(full_db) in text
    assert "BALSAM_DB_PATH" in text
    assert f"{SEVERAL} READY" in text


# ---- adding


def test_a_job_with_every_option_is_stored_as_said(db):
    here.good("app", "--name", "sim", "--executable", "sim.x {x}", db=db)
    parent = here.good("run", "--name", "p", "--", "true", db=db).out.strip()
    given = {
        "name": "j", "workflow": "w", "description": "d", "app": "sim", "args": "--fast {y}", "command": "",
        "parameters": {"x": 0.5, "y": "a b"}, "parents": [1], "wait_for_parents": False,
        "input_files": ["*.a", "*.b", "c"], "stage_in": "/in", "stage_out": "/out", "stage_out_files": ["*.o"],
        "user_workdir": "/here", "environ": {"K": "V=W"}, "preprocess": "pre", "postprocess": "post",
        "post_error_handler": True, "post_timeout_handler": True, "auto_timeout_retry": False, "max_retries": 2,
        "retry_delay_seconds": 2.5, "time_limit_minutes": 0.5, "input_mode": "copy",
        "priority": -3, "wall_time_minutes": 5, "num_nodes": 2, "ranks_per_node": 3, "threads_per_rank": 4,
        "threads_per_core": 1, "gpus_per_rank": 0.5, "node_packing_count": 2, "cpu_affinity": "depth", "key": "k",
        "data": {"a": [1]},
    }  # fmt: skip
    # Other fields are texts with an option of the same name.
    others = {name: f"some {name}" for name in FIELDS if name not in given and name not in GIVEN_BY_DATABASE}
    more = [word for name, text in others.items() for word in (f"--{name.replace('_', '-')}", text)]
    out = here.good(
        "job", "--name", "j", "--workflow", "w", "--description", "d", "--application", "sim", "--args", "--fast {y}",
        "--param", "x=0.5", "-p", "y=a b", "--parent", parent, "--input-files", "*.a *.b", "--input-files", "c",
        "--no-wait-for-parents", "--stage-in", "/in", "--stage-out", "/out", "--stage-out-files", "*.o",
        "--user-workdir", "/here", "--env", "K=V=W", "--preprocess", "pre", "--postprocess", "post",
        "--post-error-handler", "--post-timeout-handler", "--no-auto-timeout-retry", "--max-retries", 2,
        "--retry-delay-seconds", 2.5, "--time-limit-minutes", 0.5, "--input-mode", "copy",
        "--priority", -3, "--wall-time-minutes", 5, "--num-nodes", 2, "--ranks-per-node", 3, "--threads-per-rank", 4,
        "--threads-per-core", 1, "--gpus-per-rank", 0.5, "--node-packing-count", 2, "--cpu-affinity", "depth", "--key",
        "k", "--data", '{"a": [1]}', *more, db=db,
    ).out  # fmt: skip
    got = here.good("show", out.strip(), "-o", "json", db=db).json
    computed = {"id": 2, "state": "READY", "return_code": None, "workdir": "/here", "children": []}
    expected = {**given, **others, **computed}
    assert {name: got[name] for name in expected} == expected
    assert set(got) == {*FIELDS, "children", "workdir", "attempts", "history"}


def test_options_left_out_leave_the_defaults(db):
    here.good("job", "--command", "true", db=db)
    got = here.good("show", "last", "-o", "json", db=db).json
    plain = Job(command="true")
    given_by_the_db = {"id", "name", "state", "state_since", "created_at"}
    assert {name: got[name] for name in FIELDS if name not in given_by_the_db} == {
        name: getattr(plain, name) for name in FIELDS if name not in given_by_the_db
    }


def test_run_takes_the_words_as_they_are(db):
    words = ["printf", "%s", "a b", "$HOME", "'", "-x", "--name", "{x}"]
    done = child.good("run", "--wf", "w", "--", *words, db=db)
    assert done.ids == [1]
    assert "balsam launcher" in done.err
    with open_db(db) as opened:
        job = opened.jobs.get(1)
        assert shlex.split(job.command) == words
        assert (job.name, job.workflow) == ("printf", "w")
    assert child.good("run", "--name", "n", "echo", "-n", "x", "-o", "json", db=db).ids == [
        2
    ]  # all words behind echo are its


def test_a_key_gives_the_same_job_back(db):
    words = ("run", "--key", "once", "-p", "x=1", "--parent", here.good("job", "--command", "p", db=db).out.strip())
    first = here.good(*words, "--", "true", db=db)
    assert (first.ids, "Added job 2" in first.err) == ([2], True)
    again = here.good(*words, "--", "true", db=db)
    assert again.ids == [2]
    assert again.err == "Job 2 exists already with this key and the same content; nothing was added.\n"
    refused = here(*words, "--priority", 3, "--", "false", db=db)
    assert refused.code == 4
    assert 'job 2 with the key \'once\' exists with other content (name: "true" -> "false"; ' in refused.err
    assert 'command: "true" -> "false"; priority: 0 -> 3); nothing was added or changed' in refused.err
    kept = here.good("job", "--key", "once", "--command", "false", "--if-exists", "keep", db=db)
    assert (kept.ids, "kept as it is" in kept.err) == ([2], True)
    assert here.good("show", 2, "-o", "json", db=db).json["command"] == "true"
    argv = ("job", "--key", "once", "--command", "false", "--if-exists", "update")
    changed = here.good(*argv, "-o", "json", db=db).json
    assert (changed["id"], changed["command"], changed["outcome"]) == (2, "false", "updated")
    assert here.good(*argv, "-o", "ids", db=db).ids == [2]
    here.good("kill", 2, db=db)
    ended = here("job", "--key", "once", "--command", "true", "--if-exists", "update", db=db)
    assert (ended.code, "has ended (USER_KILLED)" in ended.err) == (4, True)
    assert "--key" in here("job", "--command", "true", "--if-exists", "update", db=db).err
    assert len(here.good("ls", "-o", "ids", db=db).ids) == 2


def test_parents_are_chosen_by_selectors_and_dep_adds_one(db):
    with open_db(db) as opened:
        opened.jobs.add([Job(command="true", workflow="a") for _ in range(4)])
    assert here.good("job", "--command", "true", "--parent", "wf:a", "-o", "json", db=db).json["parents"] == [
        1,
        2,
        3,
        4,
    ]
    assert here.good("job", "--command", "x", "--parent", "2-3,5", "-o", "json", db=db).json["parents"] == [2, 3, 5]
    piped = here.good("job", "--command", "x", "--parent", "-", "-o", "json", db=db, stdin="1\n4\n")
    assert piped.json["parents"] == [1, 4]
    added = here.good("dep", 1, 2, "-o", "json", db=db).json
    assert added == {"parent": 1, "child": 2, "added": True}
    assert here.good("dep", 1, 2, "-o", "json", db=db).json["added"] is False
    assert here.good("show", 2, "-o", "json", db=db).json["parents"] == [1]
    assert here.good("show", 1, "-o", "json", db=db).json["children"] == [2, 5, 7]


def test_an_app_is_replaced_only_on_request(db):
    here.good("app", "--name", "sim", "--executable", "a", db=db)
    assert "--replace" in here.refused("app", "--name", "sim", "--executable", "b", code=4, db=db)
    here.good("app", "--name", "sim", "--executable", "b", "--replace", db=db)
    assert [app["executable"] for app in here.good("ls", "apps", "-o", "json", db=db).json] == ["b"]


# ---- looking


def test_the_default_table_shows_the_newest_and_says_so(full_db):
    done = here.good("ls", db=full_db)
    rows = done.out.splitlines()
    assert len(rows) == 101
    assert rows[0].split() == ["ID", "STATE", "WORKFLOW", "NAME", "RUNS", "STATE_SINCE"]
    assert rows[-1].split()[:4] == [str(SEVERAL + 2), "AWAITING_PARENTS", "scan", "child"]
    assert [int(row.split()[0]) for row in rows[1:]] == list(range(SEVERAL - 97, SEVERAL + 3))
    assert done.err == "... showing the newest 100; there are more: --limit 0 for all, --by-states for a count\n"
    everything = here.good("ls", "--limit", 0, db=full_db)
    assert (len(everything.out.splitlines()), everything.err) == (SEVERAL + 3, "")
    assert here.good("ls", "--limit", SEVERAL + 2, db=full_db).err == ""


def test_other_formats_give_all_jobs_unless_limited(full_db):
    assert here.good("ls", "-o", "ids", db=full_db).ids == list(range(1, SEVERAL + 3))
    assert here.good("ls", "-o", "ids", "--limit", 2, db=full_db).ids == [SEVERAL + 1, SEVERAL + 2]
    assert here.good("ls", "-o", "ids", "--limit", 5_000, db=full_db).ids == list(range(1, SEVERAL + 3))


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (["--name", "job-14"], [16, *range(142, 152)]),
        (["--name", "JOB"], []),
        (["--name", "%"], []),
        (["--wf", "scan"], [1, SEVERAL + 2]),
        (["--wf", "sca"], []),
        (["--app", "sim"], [1, SEVERAL + 2]),
        (["--state", "user_killed"], [5]),
        (["--state", "AWAITING_PARENTS,USER_KILLED"], [5, SEVERAL + 2]),
        (["--id", "3-5,9", "--id", "last"], [3, 4, 5, 9, SEVERAL + 2]),
        (["--id", "3-5", "--state", "READY"], [3, 4]),
        (["--id", "wf:scan"], [1, SEVERAL + 2]),
    ],
)
def test_filters(options, ids, full_db):
    assert here.good("ls", *options, "-o", "ids", db=full_db).ids == ids


def test_json_has_all_fields_by_name_and_times_in_utc(full_db):
    first = here.good("ls", "-o", "json", "--id", 1, db=full_db).json[0]
    assert tuple(first) == JOB_FIELDS
    assert set(first) == set(FIELDS)
    assert (first["parameters"], first["data"], first["key"]) == ({"x": 0.5}, {"tag": "é"}, None)
    created = datetime.fromisoformat(first["created_at"])
    assert created.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - created) < timedelta(hours=1)


def test_fields_choose_columns_in_every_format(full_db):
    words = ["ls", "--id", "1,2", "-F", "name,id,runs,workdir,wait-for-parents"]
    shown = here.good(*words, "-o", "jsonl", db=full_db).out.splitlines()
    place = f"{full_db}/data/scan/first_1"
    assert json.loads(shown[0]) == {"name": "first", "id": 1, "runs": "sim", "workdir": place, "wait_for_parents": True}
    table = list(csv.reader(io.StringIO(here.good(*words, "-o", "csv", db=full_db).out)))
    assert table[0] == ["name", "id", "runs", "workdir", "wait_for_parents"]
    assert table[2][:3] == ["job-0", "2", "true"]
    assert here.good(*words, "-o", "ids", db=full_db).ids == [1, 2]
    assert here.good(*words, db=full_db).out.splitlines()[0].split()[0] == "NAME"


def test_history_tells_each_state_and_why(full_db):
    rows = here.good("ls", "--history", "--id", "5", "-o", "json", db=full_db).json
    assert [row["state"] for row in rows] == ["CREATED", "READY", "USER_KILLED"]
    assert (rows[-1]["message"], rows[-1]["job_id"]) == ("too slow", 5)
    assert [row["at"] for row in rows] == sorted(row["at"] for row in rows)
    shown = here.good("show", 5, "-o", "json", db=full_db).json["history"]
    assert [row["state"] for row in shown] == ["CREATED", "READY", "USER_KILLED"]
    assert "too slow" in here.good("ls", "--history", "--id", "5", db=full_db).out


def test_counts_by_state_and_workflow(full_db):
    assert here.good("ls", "--by-states", "-o", "json", db=full_db).json == [
        {"state": "AWAITING_PARENTS", "jobs": 1},
        {"state": "READY", "jobs": SEVERAL},
        {"state": "USER_KILLED", "jobs": 1},
    ]
    assert here.good("ls", "wf", "-o", "json", db=full_db).json == [
        {"workflow": "bulk", "jobs": SEVERAL, "states": {"READY": SEVERAL - 1, "USER_KILLED": 1}},
        {"workflow": "scan", "jobs": 2, "states": {"AWAITING_PARENTS": 1, "READY": 1}},
    ]
    assert here.good("ls", "wf", "-o", "ids", db=full_db).out == "bulk\nscan\n"
    some = here.good("ls", "wf", "--by-states", "--state", "READY", "-o", "jsonl", db=full_db).out.splitlines()
    assert [json.loads(line)["jobs"] for line in some] == [SEVERAL - 1, 1]
    assert re.search(rf"^READY +{SEVERAL}$", here.good("ls", "--by-states", db=full_db).out, re.MULTILINE)


def test_apps_are_listed(full_db):
    assert here.good("ls", "apps", "-o", "json", db=full_db).json == [
        {
            "name": "sim", "executable": "sim.x {x}", "description": "simulate", "preprocess": "", "postprocess": "",
            "environ": {"A": "1"},
        }
    ]  # fmt: skip
    assert here.good("ls", "apps", "--name", "nope", "-o", "ids", db=full_db).out == ""
    assert "sim.x {x}" in here.good("ls", "apps", db=full_db).out


def test_an_empty_db_says_so_on_stderr_only(empty_db):
    for words in (["ls"], ["ls", "wf"], ["ls", "--by-states"], ["ls", "--history"]):
        done = here.good(*words, db=empty_db)
        assert (done.out, done.err) == ("", "There are no jobs yet: see balsam job and balsam run.\n")
    assert here.good("ls", "--name", "x", db=empty_db).err == "No job matches.\n"
    assert here.good("ls", "-o", "json", db=empty_db).json == []
    assert here.good("ls", "apps", db=empty_db).out == ""


def test_show_tells_everything_in_words(full_db):
    out = here.good("show", "last", db=full_db).out
    assert re.search(r"^parents +1$", out, re.MULTILINE)
    assert re.search(r'^parameters +\{"x": "a b"\}$', out, re.MULTILINE)
    assert "AWAITING_PARENTS" in out
    assert str(full_db / "data" / "scan") in out


def test_the_format_can_come_from_the_environment(full_db):
    assert here.good("ls", "--id", 1, db=full_db, env={"BALSAM_OUTPUT": "ids"}).ids == [1]
    assert here.good("ls", "--id", 1, "-o", "jsonl", db=full_db, env={"BALSAM_OUTPUT": "ids"}).json["id"] == 1
    assert "BALSAM_OUTPUT is 'xml'" in here.refused("ls", code=2, db=full_db, env={"BALSAM_OUTPUT": "xml"})


# ---- changing


def test_kill_and_retry_and_their_pipes(db):
    with open_db(db) as opened:
        opened.jobs.add([Job(command="true", workflow="a") for _ in range(3)])
        opened.jobs.add(Job(command="true", workflow="b", parents=[1]))
    assert child.good("kill", 1, "-m", "enough", "-o", "json", db=db).json == {"killed": 1, "ids": [1]}
    states = {row["id"]: row["state"] for row in child.good("ls", "-o", "json", db=db).json}
    assert states == {1: "USER_KILLED", 2: "READY", 3: "READY", 4: "PARENT_KILLED"}
    assert child.good("kill", 1, db=db).out == "killed no job: they had ended (1 USER_KILLED)\n"
    killed = child.good("ls", "--state", "USER_KILLED", "-o", "ids", db=db).out
    assert child.good("retry", "-", db=db, stdin=killed).out == "retried 1 job\n"
    states = {row["id"]: row["state"] for row in child.good("ls", "-o", "json", db=db).json}
    assert states == {1: "READY", 2: "READY", 3: "READY", 4: "AWAITING_PARENTS"}
    assert child.good("kill", "wf:a", "-o", "ids", db=db).ids == [1, 2, 3]
    assert child.good("retry", "-", db=db, stdin="").out.startswith("retried no job")


def test_retry_says_what_it_left_alone_and_why(db):
    with open_db(db) as opened:
        opened.jobs.add([Job(command="true") for _ in range(2)])
        opened.jobs.add([Job(command="true", parents=[1]), Job(command="true")])
        opened.jobs.where(Job.id != 2).kill()
    assert here.good("retry", 2, db=db).out == "retried no job: they had not failed or been killed (1 READY)\n"
    assert "job 3 can't run again before its failed or killed parent" in here.refused("retry", "2-3", db=db, code=4)
    done = here("retry", "2-4", db=db)
    assert (done.code, done.out) == (0, "retried 1 job\n")
    assert "Not retried, since they had not failed or been killed: 1 READY." in done.err
    assert "Warning: 1 job not retried, 1 behind a failed or killed parent: job 3 can't run again before" in done.err
    assert here.good("retry", "all", "-o", "json", db=db).json == {"retried": 2, "ids": [1, 3]}


def test_relative_paths_are_those_of_the_user(db, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--stage-in", "in", "--stage-out", "../out", "--stage-out-files", "*", "--user-workdir", "~/here"]
    here.good("job", "--command", "true", *words, db=db)
    got = here.good("show", "last", "-o", "json", db=db).json
    assert [got[name] for name in ("stage_in", "stage_out", "user_workdir")] == [
        f"{tmp_path}/in", f"{tmp_path.parent}/out", "~/here",
    ]  # fmt: skip


def test_rm_keeps_files_unless_told_and_never_follows_links(db, tmp_path):
    with open_db(db) as opened:
        opened.jobs.add([Job(command="true", name="n", workflow="w") for _ in range(4)])
        places = [opened.workdir(opened.jobs.get(job)) for job in (1, 2, 3, 4)]
    outside = tmp_path / "precious"
    outside.mkdir()
    (outside / "file").write_text("keep")
    for place in places[:3]:
        (place / "deep").mkdir(parents=True)
        (place / "link").symlink_to(outside)
    places[3].symlink_to(outside)
    assert here.good("rm", 1, "--yes", db=db).out == "removed 1 job\n"
    assert places[0].exists()
    here.good("rm", "2-3", "--yes", "--files", db=db)
    assert [place.exists() for place in places] == [True, False, False, True]
    left = here.good("rm", 4, "--yes", "--files", db=db)
    assert "Warning" in left.err
    assert (outside / "file").read_text() == "keep"
    assert here.good("ls", "-o", "ids", db=db).ids == []


def test_rm_with_files_does_not_follow_a_planted_workflow_directory(db, tmp_path):
    here.good("run", "--name", "n", "--wf", "w", "--", "true", db=db)
    outside = tmp_path / "precious"
    (outside / "n_1").mkdir(parents=True)
    (db / "data" / "w").symlink_to(outside)
    assert "Warning" in here.good("rm", 1, "--yes", "--files", db=db).err
    assert (outside / "n_1").exists()


def test_rm_asks_and_takes_no_for_an_answer_where_nobody_is(db):
    here.good("run", "--", "true", db=db)
    assert "--yes" in here.refused("rm", "all", code=2, db=db)
    assert here.good("ls", "-o", "ids", db=db).ids == [1]


def test_rm_removes_with_a_job_all_that_depend_on_it(db):
    here.good("run", "--", "true", db=db)
    here.good("run", "--parent", 1, "--", "true", db=db)
    here.good("run", "--parent", 2, "--", "true", db=db)
    here.good("run", "--", "true", db=db)
    assert here.good("rm", 1, "--cascade", "-y", "-o", "json", db=db).json == {"removed": 3, "ids": [1, 2, 3]}
    assert here.good("ls", "-o", "ids", db=db).ids == [4]
    assert "go with jobs only" in here.refused("rm", "apps", "sim", "--cascade", "-y", code=2, db=db)


def test_rm_refuses_what_others_need(db):
    here.good("app", "--name", "sim", "--executable", "a", db=db)
    here.good("job", "--app", "sim", db=db)
    here.good("run", "--parent", 1, "--", "true", db=db)
    assert "its children 2 have not finished" in here.refused("rm", 1, "-y", code=4, db=db)
    assert "used by job 1" in here.refused("rm", "apps", "sim", "-y", code=4, db=db)
    assert here.good("rm", "jobs", "all", "-y", "-o", "json", db=db).json == {"removed": 2, "ids": [1, 2]}
    assert here.good("rm", "apps", "sim", "-y", db=db).code == 0
    assert here.good("ls", "apps", "-o", "json", db=db).json == []


def test_more_ids_from_stdin_than_one_statement_takes(db):
    with open_db(db) as opened:
        opened.jobs.add(Job(command="true") for _ in range(3_000))
    odd = "".join(f"{number}\n" for number in range(1, 3_000, 2))
    assert len(here.good("ls", "--id", "-", "-o", "ids", db=db, stdin=odd).ids) == 1_500
    assert here.good("ls", "--id", "-", "-o", "ids", "--limit", 2, db=db, stdin=odd).ids == [2_997, 2_999]
    assert here.good("kill", "-", db=db, stdin=odd).out == "killed 1500 jobs\n"
    newest = here.good("ls", "-o", "ids", "--limit", 2_500, db=db).ids
    assert newest == list(range(501, 3_001))
    assert here.good("ls", "--limit", 2_500, db=db).err.startswith("... showing the newest 2500")


def test_plugins_are_listed_and_checked():
    rows = {row["name"]: row for row in child.good("plugins", "list", "-o", "json").json}
    assert (rows["sqlite"]["status"], rows["sqlite"]["package"]) == ("ok", "balsam-sqlite")
    table = child.good("plugins", "list").out
    assert re.search(r"^sqlite +backend +balsam-sqlite \S+ +optional +1 +ok", table, re.MULTILINE)
    assert child.good("plugins", "check", "sqlite", "-o", "json").json[0]["status"] == "ok"


@pytest.mark.parametrize("words", [("job", "--command", "a > f"), ("app", "--name", "x", "--executable", "a > f")])
def test_an_operator_of_a_shell_is_told_when_the_command_is_given(db, words):
    done = here(*words, "-o", "ids", db=db)
    assert done.code == 0
    assert done.err.startswith("Warning: no shell sees --")
    assert "'>' is passed to the program" in done.err
    assert here("run", "--", "sh", "-c", "echo a > f", db=db).err.startswith("Added job")


def test_an_expansion_of_a_shell_is_told_unless_it_is_a_parameter(db):
    done = here("job", "--command", "echo ${x} $HOME", "-p", "x=1", db=db)
    assert "no shell sees --command, so '$HOME' is passed to the program" in done.err
    assert "Warning" not in here("job", "--command", "echo ${x}", "-p", "x=1", db=db).err
    assert "Warning" not in here("app", "--name", "y", "--executable", "echo ${x}", db=db).err
    assert "'`date`'" in here("app", "--name", "z", "--executable", 'echo "`date`"', db=db).err


@pytest.mark.parametrize(
    "address",
    [
        "mysql+pymysql://me:secret@h/db",
        " postgresql://me:secret@h/db",
        "jdbc:postgresql://h/db?password=secret",
        "postgresql:me:secret@h/db",
        "postgres:/me:secret@h/db",
        "postgresql%3A//me:secret@h/db",
        "//me:secret@h/db",
        "me:secret@h:5432/db",
        "host=h password=secret dbname=db",
        "host = 'h' user = 'secret'",
        "password=secret",
        "Server=h;Database=db;Uid=me;Pwd=secret;",
    ],
)
def test_the_address_of_a_server_is_no_path_and_is_not_shown(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, code in (
        (["init", address], 8),
        (["ls", "--db", address], 8),
        (["init", "x", "--db-type", address], 12),
    ):
        done = here(*words)
        assert done.code == code, done
        assert "is a URL or the like" in done.err
        assert "secret" not in (done.err + done.out).lower()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["host=h", "a:b", "me@h:x", "x=1 y=2", "postgres", "sqlite-db", "user=me/host=h", "a b"]
)
def test_a_directory_may_have_a_name_with_signs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here.good("init", name)
    assert (tmp_path / name / "balsam.toml").exists()


@pytest.mark.parametrize("words", [["init"], ["ls", "--db"], ["status", "--db"]])
def test_a_url_is_no_path_and_its_password_is_not_shown(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = here(*words, "postgresql://me:secret@h/db")
    assert done.code == DBDirError.exit_code, done
    assert "is a URL" in done.err
    assert "secret" not in done.err + done.out
    assert list(tmp_path.iterdir()) == []


# ---- root failures


def test_root_failures_are_listed_with_what_followed_from_them(db):
    with open_db(db) as opened:
        bad = Job(command=shlex.join(["sh", "-c", "echo no mesh >&2; exit 2"]), name="bad", workflow="scan")
        others = [Job(command="true", name=f"after-{number}", parents=[bad]) for number in range(63)]
        own = Job(command="false", name="own", workflow="other")
        opened.jobs.add([bad, *others, own, Job(command="true", parents=[others[0]])])
    assert here.good("ls", "--root-failures", db=db).err == "No job has failed.\n"
    here("launcher", "--consume-all", db=db)
    rows = here.good("ls", "--root-failures", "-o", "json", db=db).json
    assert [(row["name"], row["also_failed"], row["reason"]) for row in rows] == [
        ("bad", 64, "exit code 2: no mesh"),
        ("own", 0, "exit code 1"),
    ]
    assert here.good("ls", "--root-failures", "--wf", "scan", "-o", "ids", db=db).ids == [1]
    assert here.good("ls", "--root-failures", "--id", "60-70", "-o", "ids", db=db).ids == [65]
    table = here.good("ls", "--root-failures", "--limit", 1, db=db)
    assert table.out.splitlines()[1].split()[:3] == ["65", "other", "own"]
    assert table.err == "... showing the newest 1 of 2: --limit 0 for all\n"
    for words in (("--history",), ("--by-states",), ("--state", "FAILED"), ("-F", "id")):
        assert "--root-failures" in here.refused("ls", "--root-failures", *words, db=db, code=2)
    assert "ls apps" in here.refused("ls", "apps", "--root-failures", db=db, code=2)
    roots = here.good("ls", "--root-failures", "-o", "ids", db=db).out
    assert here.good("retry", "-", db=db, stdin=roots).out == "retried 2 jobs\n"
    with open_db(db) as opened:
        assert opened.jobs.states() == {"AWAITING_PARENTS": 64, "READY": 2}
