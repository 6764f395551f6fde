"""Command lines are split before they are filled, and the environment of a job has its layers in order."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import InvalidInput
from balsam_core.launcher.job.commands import base_environment, cores_of_ranks, hook_argv, job_argv, job_environment
from balsam_core.launcher.mpi import KINDS
from balsam_core.launcher.placement import Place
from balsam_core.model.app import App
from balsam_core.model.job import Job


def test_an_app_is_filled_from_the_parameters():
    job = Job(app="sim", args="-v {y}", parameters={"x": "a b; rm -rf /", "y": 2.5})
    assert job_argv(job, App("sim", "sim.x --x {x}")) == ["sim.x", "--x", "a b; rm -rf /", "-v", "2.5"]


def test_a_missing_parameter_is_named():
    with pytest.raises(InvalidInput, match="parameter 'x' is missing"):
        job_argv(Job(app="sim", parameters={"y": 1}), App("sim", "sim.x {x}"))


def test_braces_of_a_command_without_parameters_mean_themselves():
    assert job_argv(Job(command="awk '{print}' {x}"), None) == ["awk", "{print}", "{x}"]


def test_a_command_with_parameters_is_filled():
    assert job_argv(Job(command="echo {x}", parameters={"x": 1}), None) == ["echo", "1"]


def test_an_app_that_is_gone_is_named():
    with pytest.raises(InvalidInput, match="no app 'gone'"):
        job_argv(Job(app="gone"), None)


@pytest.mark.parametrize("command", ["''", "   "])
def test_an_empty_command_line_is_refused(command):
    with pytest.raises(InvalidInput, match="empty"):
        job_argv(Job(command=command), None)


@given(st.text(max_size=40) | st.text(alphabet="ab '\"\\\t\n\r\x0b\x0c\x1c\xa0#$*", max_size=20))
def test_quick_splitting_agrees_with_a_shells(text):
    try:
        expected = shlex.split(text)
    except ValueError:
        return
    if expected and expected[0]:
        assert job_argv(Job(command=text), None) == expected


def test_a_jobs_own_hooks_replace_the_apps():
    app = App("sim", "sim.x", preprocess="prepare {x}", postprocess="finish")
    job = Job(app="sim", parameters={"x": 1}, postprocess="own")
    assert hook_argv(job, app, "preprocess") == ["prepare", "1"]
    assert hook_argv(job, app, "postprocess") == ["own"]
    assert hook_argv(Job(command="true"), None, "preprocess") == []


def test_the_environment_has_its_layers_in_order(tmp_path, monkeypatch):
    for name in ("OUTER", "APP", "JOB"):
        monkeypatch.setenv(name, "outer")
    monkeypatch.setenv("BALSAM_JOB_ERROR", "TRUE")  # a launcher inside a job
    monkeypatch.setenv("BALSAM_JOB_ID", "999")
    base = base_environment(DBDir(path=tmp_path, db_type="sqlite", id="0" * 32), 7)
    app = App("sim", "sim.x", environ={"APP": "app", "JOB": "app"})
    job = Job(app="sim", id=12, parents=[3, 4], environ={"JOB": "job", "BALSAM_JOB_ID": "forged"})
    env = {**base, **job_environment(base, job, app, tmp_path)}
    assert (env["OUTER"], env["APP"], env["JOB"]) == ("outer", "app", "job")
    assert (env["BALSAM_DB_PATH"], env["BALSAM_LAUNCHER_ID"]) == (str(tmp_path), "7")
    assert (env["BALSAM_JOB_ID"], env["BALSAM_PARENT_IDS"]) == ("12", "3 4")
    assert "BALSAM_JOB_ERROR" not in env


def test_hooks_of_an_app_are_templates_and_own_ones_are_not():
    app = App("sim", "sim.x", preprocess="sh -c 'echo {x} {{y}}'", postprocess="echo {z}")
    job = Job(app="sim", parameters={"x": 1})
    assert hook_argv(job, app, "preprocess") == ["sh", "-c", "echo 1 {y}"]
    with pytest.raises(InvalidInput, match="postprocess of app 'sim': parameter 'z' is missing"):
        hook_argv(job, app, "postprocess")
    assert hook_argv(Job(app="sim", postprocess="echo ${HOME} {z}"), app, "postprocess") == ["echo", "${HOME}", "{z}"]


def test_a_shell_variable_in_an_own_command_is_no_placeholder():
    job = Job(command="sh -c 'echo ${HOME} {x}'", parameters={"x": "1.10"})
    assert job_argv(job, None) == ["sh", "-c", "echo ${HOME} 1.10"]


@pytest.mark.parametrize(("count", "in_file"), [(10_000, False), (25_000, True)])
def test_very_many_ids_of_parents_are_in_a_file(tmp_path, count, in_file):
    ids = list(range(100_000, 100_000 + count))
    env = job_environment({}, Job(id=1, command="x", parents=ids), None, tmp_path)
    if in_file:
        assert "BALSAM_PARENT_IDS" not in env
        assert [int(line) for line in Path(env["BALSAM_PARENT_IDS_FILE"]).read_text().splitlines()] == ids
    else:
        assert env["BALSAM_PARENT_IDS"].split() == [str(number) for number in ids]
        assert "BALSAM_PARENT_IDS_FILE" not in env


@pytest.mark.parametrize(
    ("affinity", "cores", "expected"),
    [
        ("depth", (0, 1, 4, 5), [(0, 1), (4, 5)]),
        ("depth", (0, 1), [(0,), (1,)]),
        ("depth", (0,), []),  # fewer processors than ranks: they share them
        ("0,1", (0, 1), []),
        ("", (0, 1), []),
    ],
)
def test_ranks_have_processors_of_their_own(affinity, cores, expected):
    job = Job(command="x", ranks_per_node=2, threads_per_rank=2, cpu_affinity=affinity)
    assert cores_of_ranks(job, Place(cores, cores)) == expected


@pytest.mark.parametrize(("kind", "bound"), [("openmpi", True), ("mpich", True), ("intelmpi", True), ("srun", False)])
def test_ranks_bind_themselves_where_the_mpi_program_does_not(kind, bound):
    argv = KINDS[kind].wrap(["x.exe"], Job(command="x.exe", ranks_per_node=2), [(0, 1), (4, 5)])
    assert argv[-1] == "x.exe"
    assert ("0,1:4,5" in argv) == bound
