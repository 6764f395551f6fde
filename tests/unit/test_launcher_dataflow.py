"""Parents' files come as links that survive a move, clash visibly and never replace anything; staging is by copying."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.workdirs import make_workdir
from balsam_core.errors import InvalidInput
from balsam_core.launcher.job.dataflow import LinkedFiles, change_remarks, copy_commands, find_inputs, link_inputs
from balsam_core.launcher.job.patterns import Patterns
from balsam_core.launcher.job.staging import stage_in_command, stage_out_commands
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


def link_parents(directory, job, workdir, parents):
    return link_inputs(job, workdir, find_inputs(directory, job, workdir, parents))


def copy_parents(directory, job, workdir, parents):
    for command in copy_commands(job, workdir, find_inputs(directory, job, workdir, parents)):
        run(command, workdir)


def content(workdir):
    return {path.name: path.read_text() for path in workdir.iterdir() if not path.name.startswith(".balsam_")}


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
        ("A.XY*", set()),
    ],
)
def test_patterns_are_those_of_a_shell_and_leave_out_logs_unless_named(directory, pattern, taken):
    job, workdir = child(directory, [pattern])
    files = ["a.xyz", ".hidden", "search.out", "search.err", "preprocess.log", "postprocess.log"]
    link_parents(directory, job, workdir, [parent(directory, 1, files)])
    assert content(workdir).keys() == taken


def test_a_name_without_a_wildcard_that_no_parent_has_is_refused(directory):
    parents = [parent(directory, 1, ["equil.restart"])]
    job, workdir = child(directory, ["*.restart", "equil.restrat"])
    with pytest.raises(InvalidInput, match=r"input_files: no parent has the file 'equil\.restrat'"):
        find_inputs(directory, job, workdir, parents)
    with pytest.raises(InvalidInput, match="no parent has"):
        find_inputs(directory, job, workdir, [])
    (workdir / "equil.restrat").touch()  # e.g. by stage-in
    assert find_inputs(directory, job, workdir, parents).unmatched == []


def test_a_wildcard_that_matches_nothing_is_remarked(directory):
    job, workdir = child(directory, ["*.restart", "*.xyz", "b?"])
    found = find_inputs(directory, job, workdir, [parent(directory, 1, ["a.xyz"])])
    assert found.remark == "input_files: no file of a parent matches '*.restart', 'b?'"
    job, workdir = child(directory, ["*.xyz"], id=98)
    assert find_inputs(directory, job, workdir, [parent(directory, 1, ["a.xyz"])]).remark == ""


def test_numbered_outputs_of_earlier_attempts_are_left_out(directory):
    job, workdir = child(directory, ["*", "*.out*"])
    outputs = ["search.out.1", "search.err.12", "search.out.x", "data.1"]
    link_parents(directory, job, workdir, [parent(directory, 1, outputs)])
    assert content(workdir).keys() == {"search.out.1", "search.out.x", "data.1"}


# ---- copies


def test_copies_have_the_names_of_links_and_are_the_jobs_own(directory):
    parents = [parent(directory, number, ["a.xyz", "README"]) for number in (17, 5)]
    (directory.data / "lj" / "search_5" / "sub").mkdir()
    (directory.data / "lj" / "search_5" / "sub" / "x").write_text("x of 5")
    (directory.data / "lj" / "search_17" / "sub").mkdir()
    (directory.data / "lj" / "search_17" / "sub" / "x").write_text("x of 17")
    job, workdir = child(directory, ["*"], input_mode="copy")
    copy_parents(directory, job, workdir, parents)
    assert [(workdir / name / "x").read_text() for name in ("sub", "sub_17")] == ["x of 5", "x of 17"]
    for name in ("sub", "sub_17"):
        shutil.rmtree(workdir / name)
    assert content(workdir) == {
        "a.xyz": "a.xyz of 5", "a_17.xyz": "a.xyz of 17", "README": "README of 5", "README_17": "README of 17",
    }  # fmt: skip
    assert not any(path.is_symlink() for path in workdir.iterdir())
    (workdir / "a.xyz").write_text("changed")
    assert (directory.data / "lj" / "search_5" / "a.xyz").read_text() == "a.xyz of 5"


def test_copying_again_brings_back_the_parents_files_and_replaces_nothing_else(directory):
    parents = [parent(directory, number, ["a.xyz"]) for number in (1, 2)]
    job, workdir = child(directory, ["*"], input_mode="copy")
    (workdir / "a_2.xyz").write_text("the job's own")
    copy_parents(directory, job, workdir, parents)
    expected = {"a.xyz": "a.xyz of 1", "a_2.xyz": "the job's own", "a_2_2.xyz": "a.xyz of 2"}
    assert content(workdir) == expected
    for name in ("a.xyz", "a_2.xyz", "a_2_2.xyz"):
        (workdir / name).write_text("half done")
    (workdir / "a.xyz").unlink()
    (workdir / "a.xyz").symlink_to(directory.data / "lj" / "search_1" / "a.xyz")  # cp would write through it
    copy_parents(directory, job, workdir, parents)
    assert content(workdir) == expected | {"a_2.xyz": "half done"}
    assert not (workdir / "a.xyz").is_symlink()


def test_a_file_that_is_read_only_is_copied_again(directory, tmp_path):
    source = tmp_path / "inputs"
    source.mkdir()
    (source / "mesh").write_text("mesh")
    (source / "mesh").chmod(0o444)
    job, workdir = child(directory, ["a.xyz"], stage_in=str(source), input_mode="copy")
    parents = [parent(directory, 1, ["a.xyz"])]
    (directory.data / "lj" / "search_1" / "a.xyz").chmod(0o444)
    # Root too is stopped by permissions then.
    as_user = [] if os.geteuid() else ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--"]
    for _ in range(2):
        found = find_inputs(directory, job, workdir, parents)
        for command in [stage_in_command(job, workdir), *copy_commands(job, workdir, found)]:
            run([*as_user, *command], workdir)
    assert content(workdir) == {"mesh": "mesh", "a.xyz": "a.xyz of 1"}


# ---- changed through links


def test_what_is_written_through_a_link_is_noticed(directory):
    parents = [parent(directory, number, ["log.lammps", "data", "other"]) for number in (1, 2)]
    job, workdir = child(directory, ["*"])
    link_parents(directory, job, workdir, parents)
    linked = LinkedFiles(directory, job, workdir, parents)
    assert linked.changed() == {}
    (workdir / "log.lammps").write_text("the child's")
    (workdir / "data_2").unlink()  # its link only
    (workdir / "data_2").write_text("the child's own")
    (directory.data / "lj" / "search_2" / "other").unlink()
    changed = linked.changed()
    assert changed == {1: ["log.lammps"], 2: ["other"]}
    own, others = change_remarks(job, changed)
    assert "log.lammps of job 1, other of job 2 (--input-mode copy" in own
    assert others == {
        1: "changed while job 99 ran, which has links to them: log.lammps",
        2: "changed while job 99 ran, which has links to them: other",
    }


def test_only_some_changed_files_are_named():
    own, others = change_remarks(Job(id=9), {1: [str(number) for number in range(300)]})
    assert own.count(" of job 1") == 5
    assert "and 295 more" in own
    assert others[1].endswith(": 0, 1, 2, 3, 4 and 295 more")


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


def stage_out(job, workdir):
    for command in stage_out_commands(job, workdir):
        run(command, workdir)


def test_stage_out_of_odd_links_brings_the_results(directory, tmp_path):
    target = tmp_path / "results"
    job, workdir = child(directory, [], stage_out=str(target), stage_out_files=["*"])
    (workdir / "result").write_text("result")
    for name, leads_to in {"here": ".", "up": "..", "away": "no/such", "loop": "loop", "root": "/"}.items():
        (workdir / name).symlink_to(leads_to)
    (workdir / "sub").mkdir()
    (workdir / "sub" / "x").write_text("x")
    (workdir / "dir").symlink_to("sub")
    for _ in range(2):
        stage_out(job, workdir)
        assert (target / "result").read_text() == "result"
        assert {path.name for path in target.iterdir() if path.is_symlink()} == {"here", "up", "away", "loop", "root"}
        assert (target / "dir" / "x").read_text() == "x"
        (target / "result").chmod(0o444)


@pytest.mark.parametrize("place", ["out", "out/deep/er"])
def test_stage_out_into_the_working_directory_itself(directory, place):
    job, workdir = child(directory, [])
    job.stage_out, job.stage_out_files = str(workdir / place), ["*"]
    (workdir / "result").write_text("result")
    (workdir / "out").mkdir()
    (workdir / "out" / "other").write_text("other")
    stage_out(job, workdir)
    stage_out(job, workdir)
    target = workdir / place
    assert (target / "result").read_text() == "result"
    if place == "out":
        assert {path.name for path in target.iterdir()} == {"result", "other"}
    else:
        assert (target / "out" / "other").read_text() == "other"
        assert not list((target / "out").rglob("er"))


def test_stage_out_to_where_everything_is_already(directory):
    job, workdir = child(directory, [])
    job.stage_out, job.stage_out_files = f"{workdir}/.", ["*"]
    (workdir / "result").write_text("result")
    assert stage_out_commands(job, workdir) == []
