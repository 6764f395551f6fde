from __future__ import annotations

import os
from pathlib import Path

import pytest

from balsam_core.admin import staging

LAST = "z-last"


def filled(target, mark):
    stage = staging.make_stage(target)
    (stage / "a-folder").mkdir()
    for name in ("a-folder/x", "m-file", LAST):
        (stage / name).write_text(mark)
    return stage


def content(target):
    return {str(path.relative_to(target)): path.read_text() for path in target.rglob("*") if path.is_file()}


def whole(mark):
    return {"a-folder/x": mark, "m-file": mark, LAST: mark}


@pytest.fixture(params=["new", "empty"])
def target(request, tmp_path):
    place = tmp_path / "here" / "db"
    place.parent.mkdir()
    if request.param == "empty":
        place.mkdir()
    return place


def leftovers(target):
    return [path for path in [*target.parent.iterdir(), *target.iterdir()] if staging.is_ours(path.name)]


def test_stage_is_private_and_takes_its_place_whole(target):
    stage = filled(target, "one")
    assert stage.stat().st_mode & 0o777 == 0o700
    assert staging.is_ours(stage.name)
    assert staging.publish(stage, target, LAST)
    assert content(target) == whole("one")
    assert leftovers(target) == []


def test_empty_directory_stays_the_same_directory(tmp_path):
    before = tmp_path.stat().st_ino
    assert staging.publish(filled(tmp_path, "one"), tmp_path, LAST)
    assert tmp_path.stat().st_ino == before


def test_second_stage_loses_and_changes_nothing(target):
    first, second = filled(target, "one"), filled(target, "two")
    assert staging.publish(first, target, LAST)
    assert not staging.publish(second, target, LAST)
    assert content(second) == whole("two")
    staging.discard(second)
    assert content(target) == whole("one")
    assert leftovers(target) == []


@pytest.mark.parametrize("moved", range(4))
def test_another_process_finishes_what_was_begun(tmp_path, monkeypatch, moved):
    stage = filled(tmp_path, "one")
    renames = iter([True] * moved)
    rename = Path.rename

    def killed_in_time(self, target):
        if not next(renames, False):
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_in_time)
        if moved < 3:
            with pytest.raises(KeyboardInterrupt):
                staging.publish(stage, tmp_path, LAST)
        else:
            assert staging.publish(stage, tmp_path, LAST)
    assert (tmp_path / LAST).exists() == (moved == 3)
    staging.discard(stage)  # what the loser of a race, or Ctrl-C, does: the winner's stage stays
    staging.finish(tmp_path, LAST)
    assert content(tmp_path) == whole("one")
    assert leftovers(tmp_path) == []


def test_other_stage_that_meets_a_half_moved_one_finishes_it(tmp_path):
    first, second = filled(tmp_path, "one"), filled(tmp_path, "two")
    (tmp_path / ".balsam-init").symlink_to(first.name)
    (first / "m-file").rename(tmp_path / "m-file")
    assert not staging.publish(second, tmp_path, LAST)
    staging.discard(second)
    assert content(tmp_path) == whole("one")
    assert leftovers(tmp_path) == []


def test_link_that_came_too_late_moves_nothing(tmp_path):
    """The stage's process was killed right after making the link, when the winner had already finished."""
    first, second = filled(tmp_path, "one"), filled(tmp_path, "two")
    assert staging.publish(first, tmp_path, LAST)
    (tmp_path / ".balsam-init").symlink_to(second.name)
    staging.finish(tmp_path, LAST)
    assert not (tmp_path / ".balsam-init").is_symlink()
    staging.discard(second)
    assert content(tmp_path) == whole("one")


@pytest.mark.parametrize("victim", ["..", "../victim", "victim", "/"])
def test_foreign_link_is_not_followed(tmp_path, victim):
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "precious").write_text("x")
    place = tmp_path / "place"
    place.mkdir()
    (place / ".balsam-init").symlink_to(victim)
    staging.finish(place, LAST)
    assert (tmp_path / "victim" / "precious").exists()
    assert [path.name for path in place.iterdir()] == [".balsam-init"]


def test_file_in_the_way_is_an_error_and_stays(tmp_path):
    stage = filled(tmp_path, "one")
    (tmp_path / "a-folder").write_text("mine")
    with pytest.raises(OSError, match="a-folder"):
        staging.publish(stage, tmp_path, LAST)
    assert (tmp_path / "a-folder").read_text() == "mine"


def dead_process():
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_only_stages_of_dead_processes_of_this_host_are_swept(target):
    mine = filled(target, "one")
    head = mine.name.removesuffix(mine.name[mine.name.rindex(f"-{os.getpid()}-") :])
    host = head.rpartition("-")[2]
    dead = mine.with_name(f"{head}-{dead_process()}-17.5-00000000")
    replaced = mine.with_name(f"{head}-{os.getpid()}-17.5-00000000")  # its number is this process's now
    other_host = mine.with_name(dead.name.replace(host, "other.host"))
    other_target = mine.with_name(dead.name.replace(".db.", ".db2."))
    foreign = mine.with_name(".db.balsam-init-mine")
    for path in (dead, replaced, other_host, other_target, foreign):
        path.mkdir()
        (path / "file").write_text("x")
    staging.sweep(target)
    assert not dead.exists()
    assert not replaced.exists()
    assert all(path.exists() for path in (mine, other_host, other_target, foreign))


@pytest.mark.parametrize("name", ["x" * 255, "ä" * 127, "🎈" * 63, "a\nb", "-x", "a.balsam-init-b", b"\xff\xfe"])
def test_any_name_of_a_target_gives_a_stage(tmp_path, name):
    target = tmp_path / os.fsdecode(name)
    stage = filled(target, "one")
    assert staging.is_ours(stage.name)
    assert staging.publish(stage, target, LAST)
    assert content(target) == whole("one")
