"""``balsam init`` from inside: kills at every step, many at once, and refusals that change nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import sqlite3
import sys
import traceback

import pytest

from balsam_core.admin import staging
from balsam_core.admin.initialise import ensure_default, initialise
from balsam_core.backends import registry
from balsam_core.backends.listing import list_plugins
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir, write_config
from balsam_core.errors import (
    BackendError,
    BalsamError,
    Conflict,
    DBDirError,
    InvalidInput,
    SchemaMismatch,
    ServerNotRunning,
)
from balsam_core.system import filesystems

FILES = ["balsam.toml", "data", "db.sqlite3", "dbwriter_address", "keys", "log"]


def entries(path):
    return sorted(os.listdir(path))  # noqa: PTH208  (names, not paths)


def snapshot(path):
    """Everything below a path: kinds, modes, contents and links."""
    found = {}
    for place in [path, *sorted(path.rglob("*"))]:
        what = place.readlink() if place.is_symlink() else place.read_bytes() if place.is_file() else None
        found[place] = (oct(place.lstat().st_mode), what)
    return found


def assert_works(db):
    """Check that a DB can be opened and has this program's schema."""
    from balsam_core.schema.version import check

    assert address.read(db) is None
    engine = registry.load(db.db_type).create_engine(db, "reader")
    try:
        with engine.connect() as conn, conn.begin():
            check(conn)
    finally:
        engine.dispose()


def in_child(function):
    """Run a function in a forked process; return the exit status, negative for a signal."""
    child = os.fork()
    if not child:
        status = 1
        try:
            status = function() or 0
        except BaseException:  # noqa: BLE001  (pytest must not go on in the child)
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(params=["new", "empty"])
def target(request, tmp_path):
    place = tmp_path / "here" / "db"
    place.parent.mkdir()
    if request.param == "empty":
        place.mkdir()
    return place


def test_all_files_are_made_and_private(target):
    result = initialise(target, "sqlite3")
    assert result.created
    assert (result.db.path, result.db.db_type) == (target, "sqlite")
    assert entries(target) == FILES
    assert entries(target.parent) == ["db"]
    assert {path.name: path.stat().st_mode & 0o777 for path in target.iterdir()} == {
        name: 0o700 if name in {"data", "log", "keys"} else 0o600 for name in FILES
    }
    assert DBDir.open(target) == result.db
    assert_works(result.db)


def test_new_directory_is_private_and_missing_parents_are_made(tmp_path):
    initialise(tmp_path / "a" / "b" / "db")
    assert (tmp_path / "a" / "b" / "db").stat().st_mode & 0o777 == 0o700


def test_current_directory_can_become_a_db(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert initialise(".").created
    assert entries(".") == FILES


def test_second_init_refreshes_and_keeps_everything(target):
    first = initialise(target, options={"durability": "relaxed"})
    (target / "data" / "mine").write_text("x")
    config = (target / "balsam.toml").read_bytes()
    second = initialise(target)
    assert not second.created
    assert second.db == first.db
    assert (target / "balsam.toml").read_bytes() == config
    assert (target / "data" / "mine").read_text() == "x"
    assert_works(second.db)


def test_refresh_restores_what_is_missing_but_the_database(target):
    db = initialise(target).db
    for folder in (db.keys, db.log, db.data):
        folder.rmdir()
    db.address_file.unlink()
    assert not initialise(target).created
    assert entries(target) == FILES
    assert_works(db)


def test_refresh_changes_an_option(target):
    initialise(target)
    assert initialise(target, "sqlite", {"durability": "relaxed"}).db.settings == {"durability": "relaxed"}
    assert DBDir.open(target).settings == {"durability": "relaxed"}


@pytest.mark.parametrize(
    "name",
    [
        "a b",
        "a\nb",
        "a?mode=memory&x",
        "100%41%",
        "'\"`",
        "-x",
        "🎈",
        "$(touch x);",
        "x" * 200,
        b"\xff\xfe",
        "a#b",
        "é",
    ],
)
def test_any_path_works(tmp_path, name):
    path = tmp_path / os.fsdecode(name)
    assert_works(initialise(path).db)
    assert not initialise(path).created
    assert [os.fsencode(entry) for entry in os.listdir(tmp_path)] == [os.fsencode(name)]  # noqa: PTH208
    assert entries(path) == FILES


def test_path_too_long_for_sqlite_is_refused_and_leaves_nothing(tmp_path):
    before = snapshot(tmp_path)
    with pytest.raises(DBDirError, match="use a shorter path"):
        initialise(tmp_path.joinpath(*["x" * 200] * 4))
    assert snapshot(tmp_path) == before


def a_file(path):
    path.write_text("precious")


def a_full_directory(path):
    path.mkdir()
    (path / "thesis.tex").write_text("precious")


def a_dangling_link(path):
    path.symlink_to("nowhere")


def a_foreign_config(path):
    path.mkdir()
    (path / "balsam.toml").write_text("garbage")


def a_newer_config(path):
    path.mkdir()
    (path / "balsam.toml").write_text("format = 99\n")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (a_file, DBDirError, "is a file"),
        (a_full_directory, DBDirError, "is not empty"),
        (a_dangling_link, DBDirError, "dangling symbolic link"),
        (a_foreign_config, DBDirError, "can't be understood"),
        (a_newer_config, SchemaMismatch, "upgrade"),
    ],
)
def test_what_is_there_is_refused_and_untouched(tmp_path, make, error, words):
    make(tmp_path / "db")
    before = snapshot(tmp_path)
    with pytest.raises(error, match=words):
        initialise(tmp_path / "db")
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    ("db_type", "options", "error", "words"),
    [
        ("oracle", {}, BackendError, "no db type 'oracle'"),
        ("postgres", {}, BackendError, "pip install balsam-postgres"),
        ("sqlite", {"durabiliti": "full"}, InvalidInput, "no option 'durabiliti'.*durability"),
        ("sqlite", {"durability": "eternal"}, InvalidInput, "eternal"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_made(tmp_path, db_type, options, error, words):
    if db_type == "postgres" and any(row.name == db_type and row.version for row in list_plugins()):
        pytest.skip("balsam-postgres is installed")
    before = snapshot(tmp_path)
    with pytest.raises(error, match=words):
        initialise(tmp_path / "a" / "db", db_type, options)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("place", ["file/db", "file/a/db", "/proc/db", "/proc/a/db"])
def test_place_where_nothing_can_be_made(tmp_path, place):
    a_file(tmp_path / "file")
    before = snapshot(tmp_path)
    with pytest.raises(DBDirError, match="can't be made a DB"):
        initialise(tmp_path / place)
    assert snapshot(tmp_path) == before


def test_another_type_is_a_conflict(target):
    initialise(target)
    before = snapshot(target)
    with pytest.raises(Conflict, match="is a DB of type sqlite, not mysql"):
        initialise(target, "mysql")
    assert snapshot(target) == before


def test_db_of_a_type_that_is_not_installed(tmp_path):
    write_config(DBDir(path=tmp_path, db_type="toy", id="0" * 32))
    before = snapshot(tmp_path)
    with pytest.raises(BackendError, match="no db type 'toy'"):
        initialise(tmp_path)
    assert snapshot(tmp_path) == before


def test_a_publication_that_nobody_keeps_is_withdrawn(target):
    db = initialise(target).db
    address.write(db, address.Address(state="running", host="h", port=1, pid=1))
    result = initialise(target)
    assert (result.created, result.restarted) == (False, None)
    assert_works(db)


@pytest.mark.parametrize("content", ["garbage", "", "{}"])
def test_a_damaged_address_is_written_again(target, content):
    db = initialise(target).db
    db.address_file.write_text(content)
    result = initialise(target)
    assert (result.created, result.restarted) == (False, None)
    assert_works(db)


def test_damaged_database_is_left_alone(target):
    initialise(target)
    (target / "db.sqlite3").write_bytes(b"")
    before = snapshot(target)
    with pytest.raises(DBDirError, match="is empty"):
        initialise(target)
    assert snapshot(target) == before


def test_database_of_another_directory_is_refused(tmp_path):
    for name in ("a", "b"):
        initialise(tmp_path / name)
    shutil.copy(tmp_path / "a" / "db.sqlite3", tmp_path / "b" / "db.sqlite3")
    with pytest.raises(Conflict, match="belongs to another DB directory"):
        initialise(tmp_path / "b")


def test_moved_directory_works(tmp_path):
    initialise(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    assert_works(initialise(tmp_path / "b").db)


def test_network_file_system_is_made_but_not_opened_directly(target, monkeypatch):
    monkeypatch.setattr(filesystems, "statfs_magic", lambda path: 0x6969)
    db = initialise(target).db
    assert not initialise(target).created
    backend = registry.load("sqlite")
    for opening in (lambda: backend.open_transport(db), lambda: backend.create_engine(db, "reader")):
        with pytest.raises(ServerNotRunning, match=r"is on nfs.*balsam dbserver.*local disk"):
            opening()
    assert entries(target) == FILES


def test_network_file_system_without_locks_is_refused(target, monkeypatch):
    import fcntl

    def lockf(*_arguments):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(filesystems, "statfs_magic", lambda path: 0x0BD00BD0)
    monkeypatch.setattr(fcntl, "lockf", lockf)
    before = snapshot(target.parent)
    with pytest.raises(DBDirError, match=r"lustre, has no working file locks"):
        initialise(target)
    assert snapshot(target.parent) == before


def test_default_db_is_made_once(tmp_path):
    path = tmp_path / "share" / "balsam" / "default_balsamdb"
    db = ensure_default(path)
    assert ensure_default(path) == db
    assert_works(db)


def test_default_db_without_the_plugin_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "installed", lambda: registry.Registry([]))
    with pytest.raises(BackendError, match=r"default DB.*pip install balsam-sqlite"):
        ensure_default(tmp_path / "default_balsamdb")
    assert entries(tmp_path) == []


def test_failure_halfway_leaves_nothing(target, monkeypatch):
    def full(db):
        raise OSError(28, "No space left on device")

    before = snapshot(target.parent)
    monkeypatch.setattr(address, "withdraw", full)
    with pytest.raises(DBDirError, match="no space left"):
        initialise(target)
    assert snapshot(target.parent) == before


# ---------------------------------------------------------------------------------------------------------------- kills

STEPS = {"open", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink"}


def init_killed_at(target, number):
    """Run ``initialise`` and die before its n-th step: a file operation near the target, or every fifth statement."""
    place = os.fsencode(target.parent)
    steps = 0

    def at_step():
        nonlocal steps
        steps += 1
        if steps == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event, arguments):
        if event in STEPS:
            named = [os.fsencode(one) for one in arguments if isinstance(one, (str, bytes, os.PathLike))]
            if any(place in path for path in named):
                at_step()

    connect = sqlite3.connect
    statements = itertools.count()

    def at_statement(_statement):
        if next(statements) % 5 == 0:
            at_step()

    def traced(*arguments, **options):
        connection = connect(*arguments, **options)
        connection.set_trace_callback(at_statement)
        return connection

    sqlite3.connect = traced
    sys.addaudithook(hook)
    initialise(target)


@pytest.mark.parametrize("before", ["new", "empty", "db"])
def test_kill_at_any_step_leaves_nothing_in_the_way_or_a_db(tmp_path, before):
    initialise(tmp_path / "warm-up")
    published = 0
    for number in itertools.count(1):
        target = tmp_path / f"at{number}" / "db"
        target.parent.mkdir()
        if before == "empty":
            target.mkdir()
        elif before == "db":
            initialise(target)
        status = ended(in_child(lambda: init_killed_at(target, number)))  # noqa: B023  (called at once)
        assert status in {0, -signal.SIGKILL}
        with contextlib.suppress(DBDirError):
            assert_works(DBDir.open(target))
            published += 1
        assert_works(initialise(target).db)
        assert entries(target) == FILES
        assert entries(target.parent) == ["db"]
        shutil.rmtree(target.parent)
        if status == 0:
            break
    assert number > 10
    assert published == number if before == "db" else 1 < published < number


def test_stages_of_the_killed_are_swept_even_when_the_db_was_made_by_another(target):
    dead = ended_pid()
    stage = staging.make_stage(target)
    stage.rename(stage.with_name(stage.name.replace(f"-{os.getpid()}-", f"-{dead}-")))
    initialise(target)
    assert entries(target.parent) == ["db"]
    assert entries(target) == FILES


def ended_pid():
    child = in_child(lambda: 0)
    ended(child)
    return child


# ---------------------------------------------------------------------------------------------------------- concurrency


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_at_once_one_creates_and_the_others_refresh(target, attempt):
    initialise(target.parent / "warm-up")
    gate, opener = os.pipe()

    def racer():
        os.close(opener)
        os.read(gate, 1)  # returns when the last writing end is closed
        try:
            return 10 if initialise(target).created else 20
        except BalsamError:
            traceback.print_exc()
            return 30

    children = [in_child(racer) for _ in range(8)]
    os.close(gate)
    os.close(opener)
    statuses = sorted(ended(child) for child in children)
    assert statuses == [10, *[20] * 7]
    # Of several that close the database at one moment, none may be the last, who removes its log.
    assert [name for name in entries(target) if not name.startswith("db.sqlite3-")] == FILES
    assert entries(target.parent) == ["db", "warm-up"]
    assert_works(DBDir.open(target))
