"""Working directories are inside ``data/`` for any name, unique, and never behind a planted link."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.workdirs import directory_name, make_workdir, output_name, workdir, workflow_name
from balsam_core.errors import DBDirError
from balsam_core.model.job import Job

NAMES = [
    "",
    ".",
    "..",
    "../../etc",
    "/etc/passwd",
    "a/b",
    "nul\0byte",
    "new\nline",
    "-rf",
    "--help",
    ".hidden",
    "~root",
    "$(reboot)",
    "🌲 balsam 🌲",
    "e\u0301",
    "\udc80",
    "x" * 10_000,
    "🌲" * 10_000,
    "../" * 5_000,
]
names = st.one_of(st.sampled_from(NAMES), st.text(max_size=300), st.text(alphabet="./-_ \n\0\\a1", max_size=300))
ids = st.integers(min_value=1, max_value=2**63 - 1)


@pytest.fixture
def directory(tmp_path):
    return new_directory(tmp_path / "db")


def new_directory(path):
    (path / "data").mkdir(parents=True)
    return DBDir(path=path, db_type="sqlite", id="0" * 32)


def job(name, workflow="default", number=1, **fields):
    return Job(name=name, workflow=workflow, id=number, command="true", **fields)


def is_safe_part(part):
    return 0 < len(part.encode()) <= 200 and "/" not in part and "\0" not in part and part[0] not in ".-"


@given(name=names, workflow=names, number=ids)
@example(name="../../etc", workflow="../../..", number=1)
def test_any_name_gives_safe_parts(name, workflow, number):
    assert is_safe_part(directory_name(name, number))
    assert is_safe_part(workflow_name(workflow))
    for ending in (".out", ".err"):
        assert is_safe_part(output_name(job(name, number=number), ending))
        assert is_safe_part(output_name(job(name, number=number, user_workdir="/somewhere"), ending))


@given(first=st.tuples(names, ids), second=st.tuples(names, ids))
@example(first=("a", 12), second=("a_1", 2))
@example(first=("x" * 300, 1), second=("x" * 300, 11))
def test_two_jobs_never_share_a_directory(first, second):
    if first[1] != second[1]:
        assert directory_name(*first) != directory_name(*second)


@given(first=names, second=names)
@example(first="a/b", second="a_b")
@example(first="x" * 300, second="x" * 301)
def test_two_workflows_never_share_a_directory(first, second):
    if first != second:
        assert workflow_name(first) != workflow_name(second)


def test_an_ordinary_name_stays_readable():
    assert directory_name("lj13-seed7", 42) == "lj13-seed7_42"
    assert workflow_name("scan_2024.1") == "scan_2024.1"
    assert output_name(job("relax"), ".out") == "relax.out"


@given(name=names, workflow=names)
def test_any_name_gives_a_directory_inside_data(name, workflow):
    with tempfile.TemporaryDirectory() as folder:
        directory = new_directory(Path(folder) / "db")
        made = make_workdir(directory, job(name, workflow))
        assert made == workdir(directory, job(name, workflow))
        assert made.is_dir()
        assert made.resolve().parent.parent == directory.data.resolve()
        assert make_workdir(directory, job(name, workflow)) == made  # again, after a restart
        assert sorted(path.name for path in Path(folder).iterdir()) == ["db"]


def test_the_directories_are_private(directory):
    made = make_workdir(directory, job("a"))
    assert made.stat().st_mode & 0o777 == 0o700
    assert made.parent.stat().st_mode & 0o777 == 0o700


def test_a_planted_link_in_place_of_the_workflow_is_refused(directory, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (directory.data / "default").symlink_to(outside)
    with pytest.raises(DBDirError, match=r"default'.*symbolic link"):
        make_workdir(directory, job("a"))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize("target", ["outside", "missing"])
def test_a_planted_link_in_place_of_the_job_is_refused(directory, tmp_path, target):
    (tmp_path / "outside").mkdir()
    (directory.data / "default").mkdir()
    (directory.data / "default" / "a_1").symlink_to(tmp_path / target)
    with pytest.raises(DBDirError, match=r"a_1'.*symbolic link"):
        make_workdir(directory, job("a"))
    assert list((tmp_path / "outside").iterdir()) == []
    assert not (tmp_path / "missing").exists()


def test_a_file_in_place_of_a_directory_is_refused(directory):
    (directory.data / "default").write_text("not a directory")
    with pytest.raises(DBDirError, match="no directory; remove"):
        make_workdir(directory, job("a"))


def test_a_directory_of_the_users_own_is_made_where_it_is_wanted(directory, tmp_path):
    wanted = tmp_path / "my" / "runs"
    assert make_workdir(directory, job("a", user_workdir=str(wanted))) == wanted
    assert wanted.is_dir()


@pytest.mark.parametrize("path", ["relative/path", "~nobody-of-this-name/x", "/dev/null/x"])
def test_an_impossible_directory_of_the_users_own_is_refused(directory, path):
    with pytest.raises(DBDirError, match=path.split("/")[-2]):
        make_workdir(directory, job("a", user_workdir=path))


def test_jobs_that_share_a_directory_write_files_of_their_own():
    first, second = (job("a", number=number, user_workdir="/shared") for number in (1, 2))
    assert output_name(first, ".out") == "a_1.out"
    assert output_name(first, ".log", stem="preprocess") == "preprocess_1.log"
    assert output_name(second, ".out") != output_name(first, ".out")


def test_a_job_without_an_id_has_no_directory(directory):
    with pytest.raises(DBDirError, match="not added"):
        workdir(directory, Job(name="a", command="true"))
