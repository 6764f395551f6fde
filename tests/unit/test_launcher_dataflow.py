"""Parents' files come as links that survive a move, clash visibly and never replace anything; staging is by copying."""

from __future__ import annotations

import subprocess

import pytest

from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.workdirs import make_workdir
from balsam_core.errors import InvalidInput
from balsam_core.launcher.job.dataflow import Patterns, link_parents, stage_in_command, stage_out_commands
from balsam_core.model.calls import ParentRef
from balsam_core.model.job import Job


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "db" / "data").mkdir(parents=True)
    return DBDir(path=tmp_path / "db", db_type="sqlite", id="0" * 32)


def parent(directory, number, files, *, name="search", workflow="lj", user_workdir=""):
    """Make a parent that has run and left files."""
    workdir = make_workdir(directory, Job(name=name, workflow=workflow, id=number, user_workdir=user_workdir))
    for file in files:
        (workdir / file).write_text(f"{file} of {number}")
    return ParentRef(number, workflow, name, user_workdir)


def child(directory, patterns, **fields):
    job = Job(**{"name": "reduce", "workflow": "lj", "id": 99, "command": "true", "input_files": patterns, **fields})
    return job, make_workdir(directory, job)


def content(workdir):
    return {path.name: path.read_text() for path in workdir.iterdir()}


def test_matching_files_of_parents_are_linked(directory):
    job, workdir = child(directory, ["*.xyz", "energy.?"])
    parents = [parent(directory, 1, ["a.xyz", "energy.1", "b.txt"]), parent(directory, 2, ["c.xyz"])]
    assert link_parents(directory, job, workdir, parents) == 3
    assert content(workdir) == {"a.xyz": "a.xyz of 1", "energy.1": "energy.1 of 1", "c.xyz": "c.xyz of 2"}
    assert all(path.is_symlink() for path in workdir.iterdir())


def test_a_clash_gets_the_parents_id_before_the_suffix(directory):
    job, workdir = child(directory, ["*"])
    parents = [parent(directory, number, ["coordinates.xyz", "README"]) for number in (17, 5)]
    link_parents(directory, job, workdir, parents)
    assert content(workdir) == {
        "coordinates.xyz": "coordinates.xyz of 5",  # the lower id comes first, however they are given
        "coordinates_17.xyz": "coordinates.xyz of 17",
        "README": "README of 5",
        "README_17": "README of 17",
    }


def test_a_name_that_looks_like_a_clash_is_no_clash(directory):
    job, workdir = child(directory, ["*"])
    parents = [parent(directory, 1, ["a.xyz", "a_2.xyz"]), parent(directory, 2, ["a.xyz"])]
    link_parents(directory, job, workdir, parents)
    assert content(workdir) == {"a.xyz": "a.xyz of 1", "a_2.xyz": "a_2.xyz of 1", "a_2_2.xyz": "a.xyz of 2"}


def test_linking_again_changes_nothing(directory):
    job, workdir = child(directory, ["*.xyz"])
    parents = [parent(directory, number, ["a.xyz"]) for number in (1, 2, 3)]
    link_parents(directory, job, workdir, parents)
    before = {path.name: path.readlink() for path in workdir.iterdir()}
    link_parents(directory, job, workdir, parents)
    assert {path.name: path.readlink() for path in workdir.iterdir()} == before
    assert len(before) == 3


def test_a_file_of_the_job_is_never_replaced(directory):
    job, workdir = child(directory, ["*.xyz"])
    (workdir / "a.xyz").write_text("the job's own")
    link_parents(directory, job, workdir, [parent(directory, 1, ["a.xyz"])])
    assert content(workdir) == {"a.xyz": "the job's own", "a_1.xyz": "a.xyz of 1"}


def test_the_jobs_own_output_is_never_written_into_a_parents_file(directory):
    job, workdir = child(directory, ["*.out"], name="search")
    link_parents(directory, job, workdir, [parent(directory, 1, ["search.out"], name="search")])
    assert content(workdir) == {"search_1.out": "search.out of 1"}


def test_links_inside_the_db_directory_survive_its_move(directory, tmp_path):
    job, workdir = child(directory, ["*.xyz"])
    link_parents(directory, job, workdir, [parent(directory, 1, ["a.xyz"], workflow="other")])
    moved = directory.path.rename(tmp_path / "moved")
    assert content(moved / workdir.relative_to(directory.path)) == {"a.xyz": "a.xyz of 1"}


def test_files_of_a_parent_with_a_directory_of_its_own_are_linked(directory, tmp_path):
    job, workdir = child(directory, ["*.xyz"])
    link_parents(directory, job, workdir, [parent(directory, 1, ["a.xyz"], user_workdir=str(tmp_path / "runs"))])
    assert content(workdir) == {"a.xyz": "a.xyz of 1"}


def test_in_a_shared_directory_nothing_needs_a_link(directory, tmp_path):
    shared = str(tmp_path / "shared")
    job, workdir = child(directory, ["*.xyz"], user_workdir=shared)
    link_parents(directory, job, workdir, [parent(directory, 1, ["a.xyz"], user_workdir=shared)])
    assert content(workdir) == {"a.xyz": "a.xyz of 1"}
    assert not (workdir / "a.xyz").is_symlink()


def test_a_parent_whose_directory_is_gone_gives_nothing(directory):
    job, workdir = child(directory, ["*"])
    assert link_parents(directory, job, workdir, [ParentRef(1, "lj", "never-ran", "")]) == 0


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        ("*", {"a.xyz"}),
        ("*.*", {"a.xyz"}),
        ("*.xyz", {"a.xyz"}),
        ("*.out", {"search.out"}),
        ("search.out", {"search.out"}),
        ("preprocess.log", {"preprocess_1.log"}),  # the job may write one of its own
        (".*", {".hidden"}),
        ("A.XYZ", set()),
    ],
)
def test_patterns_are_those_of_a_shell_and_leave_out_logs_unless_named(directory, pattern, taken):
    job, workdir = child(directory, [pattern])
    files = ["a.xyz", ".hidden", "search.out", "search.err", "preprocess.log", "postprocess.log"]
    link_parents(directory, job, workdir, [parent(directory, 1, files)])
    assert content(workdir).keys() == taken


@pytest.mark.parametrize("pattern", ["../*", "/etc/passwd", "sub/*.xyz"])
def test_a_pattern_that_leads_elsewhere_is_refused(pattern):
    with pytest.raises(InvalidInput, match="slash"):
        Patterns([pattern], what="input_files")


def run(command, workdir):
    subprocess.run(command, check=True, cwd=workdir)


def test_stage_in_copies_what_a_directory_holds(directory, tmp_path):
    source = tmp_path / "inputs"
    (source / "sub").mkdir(parents=True)
    (source / "-n.dat").write_text("data")
    (source / "sub" / "x").write_text("x")
    job, workdir = child(directory, [], stage_in=str(source))
    run(stage_in_command(job, workdir), workdir)
    assert (workdir / "-n.dat").read_text() == "data"
    assert (workdir / "sub" / "x").read_text() == "x"


def test_stage_in_copies_a_file(directory, tmp_path):
    (tmp_path / "-in.dat").write_text("data")
    job, workdir = child(directory, [], stage_in=str(tmp_path / "-in.dat"))
    run(stage_in_command(job, workdir), workdir)
    assert content(workdir) == {"-in.dat": "data"}


@pytest.mark.parametrize("source", ["relative", "~nobody-of-this-name/x", "/does/not/exist"])
def test_an_impossible_stage_in_is_refused(directory, source):
    job, workdir = child(directory, [], stage_in=source)
    with pytest.raises(InvalidInput, match="stage_in"):
        stage_in_command(job, workdir)


def test_stage_out_copies_matching_files_and_what_links_lead_to(directory, tmp_path):
    target = tmp_path / "results" / "deep"
    job, workdir = child(directory, ["a.xyz"], stage_out=str(target), stage_out_files=["*"])
    link_parents(directory, job, workdir, [parent(directory, 1, ["a.xyz"])])
    (workdir / "-b.dat").write_text("b")
    (workdir / "reduce.out").write_text("log")
    for command in stage_out_commands(job, workdir):
        run(command, workdir)
    assert content(target) == {"a.xyz": "a.xyz of 1", "-b.dat": "b"}
    assert not (target / "a.xyz").is_symlink()


def test_stage_out_of_very_many_files_takes_several_commands(directory, tmp_path):
    job, workdir = child(directory, [], stage_out=str(tmp_path / "out"), stage_out_files=["*.dat"])
    for number in range(1201):
        (workdir / f"{number}.dat").touch()
    commands = stage_out_commands(job, workdir)
    assert len(commands) == 3
    for command in commands:
        run(command, workdir)
    assert len(list((tmp_path / "out").iterdir())) == 1201
