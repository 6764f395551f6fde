"""``balsam backup`` and ``balsam restore``: on SQLite, and with a toy plugin for what can go wrong in a plugin."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tarfile
import threading
from functools import partial

import pytest
from balsam_program import BALSAM, child, here
from plugin_site import PluginSite
from served_db import ServedDB

from balsam_core import App, Job, open_db
from balsam_core.admin import archive
from balsam_core.admin.archive import Manifest
from balsam_core.admin.backup import backup, restore
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import (
    BackendError,
    Conflict,
    Corrupt,
    DBDirError,
    InvalidInput,
    NotFound,
    SchemaMismatch,
    Unavailable,
)
from balsam_core.system import filesystems
from balsam_core.testing.tools import wait_until


@pytest.fixture(autouse=True)
def _own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def db(tmp_path):
    """A DB with an app and jobs in several states."""
    path = initialise(tmp_path / "db", options={"durability": "relaxed"}).db.path
    with open_db(path) as opened:
        opened.apps.add(App("sim", "true {x}"))
        first = Job(app="sim", workflow="w", parameters={"x": "é"}, key="k")
        opened.jobs.add([first, Job(command="true", workflow="w", parents=[first]), Job(command="false", workflow="v")])
        opened.jobs.where(workflow="v").kill()
    (path / "data" / "mine").write_text("not in the backup")
    (path / "keys" / "secret").write_text("a-secret-word")
    return path


@pytest.fixture
def saved(db, tmp_path):
    file = tmp_path / "db.backup"
    with open_db(db) as opened:
        backup(opened.directory, file)
    return file


def content(path):
    """All rows of all tables but the server's own."""
    with contextlib.closing(sqlite3.connect(path / "db.sqlite3")) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        return {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names}


def entries(path):
    return sorted(os.listdir(path))  # noqa: PTH208  (names, not paths)


def changed(file, target, *, manifest=None, database=None, tail=b"", **fields):
    """Write a backup like another one, but for some fields of its manifest, its database or its end."""
    with tarfile.open(file) as tar:
        old = json.load(tar.extractfile("balsam-backup.json"))
        data = tar.extractfile("database").read()
    data = data if database is None else database
    new = {**old, "size": len(data), "sha256": hashlib.sha256(data).hexdigest(), **fields}
    head = json.dumps(new).encode() if manifest is None else manifest
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, text in (("balsam-backup.json", head), ("database", data)):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    raw = target.read_bytes()
    end = 512 + -(-len(head) // 512) * 512 + 512 + -(-len(data) // 512) * 512
    target.write_bytes(raw[: end + 1024] + tail)
    return target


# ---- saving


def test_a_restored_db_holds_what_the_saved_one_held(db, saved, tmp_path):
    before = content(db)
    restored, manifest = restore(saved, tmp_path / "new")
    assert content(restored.path) == before
    old = DBDir.open(db)
    assert (restored.id, restored.db_type) == (old.id, old.db_type)
    assert DBDir.open(tmp_path / "new") == restored
    assert restored.settings["durability"] == "full", "options are given again"
    assert manifest.db_id == old.id
    with open_db(restored.path) as opened:
        assert [job.state for job in opened.jobs.where().order_by("id")] == ["READY", "AWAITING_PARENTS", "USER_KILLED"]
        assert opened.jobs.add(Job(command="true"))[0] == 4
    assert entries(tmp_path / "new") == ["balsam.toml", "data", "db.sqlite3", "dbwriter_address", "keys", "log"]
    assert entries(tmp_path) == ["db", "db.backup", "new", "state"] or entries(tmp_path) == ["db", "db.backup", "new"]
    assert content(db) == before


def test_a_backup_is_a_private_tar_file_without_secrets(saved):
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    with tarfile.open(saved) as tar:
        assert tar.getnames() == ["balsam-backup.json", "database"]
        manifest = json.load(tar.extractfile("balsam-backup.json"))
        database = tar.extractfile("database").read()
    assert manifest["sha256"] == hashlib.sha256(database).hexdigest()
    assert set(manifest) == set(Manifest.__struct_fields__)
    raw = saved.read_bytes()
    assert b"a-secret-word" not in raw
    assert b"not in the backup" not in raw


def test_nothing_is_written_over(db, saved, tmp_path):
    before = saved.read_bytes()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with open_db(db) as opened:
        for target in (saved, tmp_path / "link", tmp_path):
            with pytest.raises(Conflict, match="exists"):
                backup(opened.directory, target)
    assert saved.read_bytes() == before
    assert not (tmp_path / "nowhere").exists()


def test_a_target_that_can_not_be_made_is_told_in_a_line(db, tmp_path):
    with open_db(db) as opened:
        with pytest.raises(NotFound, match="no folder"):
            backup(opened.directory, tmp_path / "no" / "file")
        (tmp_path / "file").touch()
        with pytest.raises((InvalidInput, NotFound)):
            backup(opened.directory, tmp_path / "file" / "x")
        with pytest.raises(InvalidInput, match="name too long"):
            backup(opened.directory, tmp_path / ("x" * 300))
        with pytest.raises(DBDirError):
            backup(opened.directory, "")


def test_a_full_disk_leaves_nothing(db, tmp_path):
    code = """
import resource, signal, sys
from balsam_core.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.exit(main(sys.argv[1:]))
"""
    words = ["backup", str(tmp_path / "small" / "x"), "--db", str(db)]
    (tmp_path / "small").mkdir()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode not in {0, 1}, done
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    assert entries(tmp_path / "small") == []


def test_backups_while_a_server_and_others_write_are_whole(db, tmp_path):
    """Each job is added with its child in one transaction; a torn copy would hold one without the other."""
    served = ServedDB(db)
    stop = threading.Event()
    counts = []

    def write():
        with open_db(db) as opened:
            while not stop.is_set():
                parent = Job(command="true", workflow="busy")
                opened.jobs.add([parent, *[Job(command="true", workflow="busy", parents=[parent]) for _ in range(9)]])
                counts.append(10)

    def reached(number):
        return len(counts) > number

    writers = [threading.Thread(target=write) for _ in range(2)]
    try:
        served.start()
        for one in writers:
            one.start()
        for number in range(3):
            enough = len(counts) + 5
            wait_until(partial(reached, enough), "jobs to be added")
            done = child.good("backup", tmp_path / f"{number}.backup", "-o", "json", db=db).json
            assert done["size"] > 0
    finally:
        stop.set()
        for one in writers:
            one.join()
        served.close()
    last = 0
    for number in range(3):
        new = restore(tmp_path / f"{number}.backup", tmp_path / f"new{number}")[0]
        with open_db(new.path) as opened:
            busy = opened.jobs.where(workflow="busy").count()
        assert busy % 10 == 0
        assert last < busy <= sum(counts)
        last = busy


def test_a_restored_db_can_be_served_beside_the_one_that_was_saved(db, saved, tmp_path):
    restore(saved, tmp_path / "new")
    ones = []
    try:
        for path in (db, tmp_path / "new"):
            ones.append(ServedDB(path))
            for _ in range(2):
                ones[-1].start()
                assert child.good("run", "-o", "ids", "--", "true", db=path).ids
                ones[-1].stop()
            ones[-1].start()
    finally:
        for one in ones:
            one.close()


def test_ctrl_c_leaves_nothing(tmp_path):
    site = PluginSite(tmp_path / "site")
    flag = tmp_path / "flag"
    more = f"""
        @hookimpl
        def balsam_backup(db, target):
            import pathlib, threading

            target.write_bytes(b"half")
            pathlib.Path({str(flag)!r}).touch()
            threading.Event().wait(60)
    """
    site.add("toy", more=more)
    child.good("init", tmp_path / "db", "--db-type", "toy", env=site.environment)
    (tmp_path / "out").mkdir()
    words = [*BALSAM, "backup", str(tmp_path / "out" / "x")]
    env = {**os.environ, **site.environment, "BALSAM_DB_PATH": str(tmp_path / "db")}
    with subprocess.Popen(words, env=env, stderr=subprocess.PIPE) as process:
        wait_until(flag.exists, "the plugin to be called")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b""
        assert process.returncode == 130
    assert entries(tmp_path / "out") == []


def test_a_network_file_system_is_refused_with_advice(db, tmp_path, monkeypatch):
    with open_db(db) as opened:
        opened.info()
        monkeypatch.setattr(filesystems, "statfs_magic", lambda _: 0x6969)  # NFS
        with pytest.raises(Unavailable, match=r"network file system.*copy the whole directory"):
            registry.load("sqlite").backup(opened.directory, None, tmp_path / "x")


# ---- restoring


def test_options_are_given_at_restoring(saved, tmp_path):
    done = here.good("restore", saved, tmp_path / "new", "--option", "durability=relaxed", "-o", "json").json
    assert done["path"] == str(tmp_path / "new")
    assert DBDir.open(tmp_path / "new").settings["durability"] == "relaxed"
    assert "no option" in here.refused("restore", saved, tmp_path / "x", "--option", "colour=red", code=5)
    assert "must be full or relaxed" in here.refused(
        "restore", saved, tmp_path / "x", "--option", "durability=no", code=5
    )
    assert not (tmp_path / "x").exists()


def test_an_empty_directory_is_filled_and_missing_parents_are_made(saved, tmp_path):
    (tmp_path / "empty").mkdir()
    assert restore(saved, tmp_path / "empty")[0].path == tmp_path / "empty"
    assert restore(saved, tmp_path / "a" / "b" / "c")[0].path == tmp_path / "a" / "b" / "c"


def test_a_db_and_anything_else_that_is_there_stay_as_they_are(db, saved, tmp_path):
    before = content(db)
    with pytest.raises(Conflict, match="is a DB already"):
        restore(saved, db)
    assert content(db) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(DBDirError, match="not empty"):
        restore(saved, tmp_path / "full")
    assert entries(tmp_path / "full") == ["mine"]
    with pytest.raises(DBDirError, match="is a file"):
        restore(saved, saved)


def test_only_one_of_many_restores_to_one_path(saved, tmp_path):
    words = [*BALSAM, "restore", str(saved), str(tmp_path / "new")]
    running = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    codes = []
    for process in running:
        process.communicate(timeout=120)
        codes.append(process.returncode)
    assert sorted(codes) == [0, 4, 4, 4]
    with open_db(tmp_path / "new") as opened:
        assert opened.jobs.where().count() == 3


def bad_files(saved, folder):
    """Name -> (a file that is no backup, the error)."""
    raw = saved.read_bytes()
    files = {
        "empty": (b"", Corrupt),
        "tiny": (raw[:100], Corrupt),
        "header only": (raw[:512], Corrupt),
        "cut in the database": (raw[:5000], Corrupt),
        "cut at the end": (raw[:-1], Corrupt),
        "longer": (raw + b"x", Corrupt),
        "text": (b"hello " * 1000, Corrupt),
        "zeros": (bytes(100_000), Corrupt),
        "one bit": (raw[:60_000] + bytes([raw[60_000] ^ 1]) + raw[60_001:], Corrupt),
        "gzip": (b"\x1f\x8b\x08" + raw[3:], Corrupt),
    }
    for name, (data, error) in files.items():
        (folder / name).write_bytes(data)
        yield folder / name, error
    yield changed(saved, folder / "newer schema", schema="9999"), SchemaMismatch
    yield changed(saved, folder / "newer format", format=2), SchemaMismatch
    yield changed(saved, folder / "schema of words", schema="../x"), Corrupt
    yield changed(saved, folder / "other type", db_type="nosuch"), BackendError
    yield changed(saved, folder / "type of a path", db_type="../sqlite"), Corrupt
    yield changed(saved, folder / "bad id", db_id="x\ny"), Corrupt
    yield changed(saved, folder / "other id", db_id="0" * 32), Conflict
    yield changed(saved, folder / "no JSON", manifest=b"{"), Corrupt
    yield changed(saved, folder / "JSON list", manifest=b"[]"), Corrupt
    yield changed(saved, folder / "no fields", manifest=b'{"format": 1}'), Corrupt
    yield changed(saved, folder / "binary", manifest=b"\xff\xfe"), Corrupt
    yield changed(saved, folder / "deep JSON", manifest=b'{"format": 1, "x": ' + b"[" * 60_000), Corrupt
    yield changed(saved, folder / "large manifest", manifest=b" " * 100_000), Corrupt
    yield changed(saved, folder / "wrong size", size=7), Corrupt
    yield changed(saved, folder / "wrong sum", sha256="0" * 64), Corrupt
    yield changed(saved, folder / "garbage database", database=b"hello" * 10_000), Corrupt
    yield changed(saved, folder / "empty database", database=b""), Corrupt
    with contextlib.closing(sqlite3.connect(folder / "foreign.db")) as foreign, foreign:
        foreign.execute("CREATE TABLE x (y)")
    yield changed(saved, folder / "foreign database", database=(folder / "foreign.db").read_bytes()), Corrupt
    with tarfile.open(saved) as tar:
        data = bytearray(tar.extractfile("database").read())
    data[8192:20480] = b"\xff" * 12288
    yield changed(saved, folder / "torn database", database=bytes(data)), Corrupt


def strange_archives(saved, folder):
    """Archives that lead elsewhere, by tricks of the format."""

    def write(name, *members):
        path = folder / name
        with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
            for member, data in members:
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        return path

    def member(name, kind=tarfile.REGTYPE, link="", **more):
        found = tarfile.TarInfo(name)
        found.type, found.linkname = kind, link
        for key, value in more.items():
            setattr(found, key, value)
        return found

    with tarfile.open(saved) as tar:
        head = tar.extractfile("balsam-backup.json").read()
        data = tar.extractfile("database").read()
    manifest = (member("balsam-backup.json"), head)
    yield write("outside", manifest, (member("../../evil"), data))
    yield write("absolute", manifest, (member("/tmp/evil"), data))
    yield write("symbolic link", manifest, (member("database", tarfile.SYMTYPE, "/etc/passwd"), b""))
    yield write("hard link", manifest, (member("database", tarfile.LNKTYPE, "/etc/passwd"), b""))
    yield write("device", manifest, (member("database", tarfile.CHRTYPE, devmajor=1, devminor=5), b""))
    yield write("pipe", manifest, (member("database", tarfile.FIFOTYPE), b""))
    yield write("folder", manifest, (member("database", tarfile.DIRTYPE), b""))
    yield write("swapped", (member("database"), data), manifest)
    yield write("manifest alone", manifest)
    yield write("twice", manifest, (member("database"), data), (member("database"), data))
    yield write("more", manifest, (member("database"), data), (member("../evil"), b"x"))
    yield write("extended header", manifest, (member("database", pax_headers={"size": "-512", "path": "/tmp/e"}), data))
    yield write("linked manifest", (member("balsam-backup.json", tarfile.SYMTYPE, "/etc/passwd"), b""))
    negative = bytearray(saved.read_bytes())
    negative[124:136] = b"\xff" * 12
    negative[148:156] = b"%06o\0 " % (sum(negative[:148]) + 8 * 32 + sum(negative[156:512]))
    (folder / "negative").write_bytes(negative)
    yield folder / "negative"


def test_bad_files_are_told_in_a_line_and_nothing_is_left(saved, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "here").mkdir()
    strange = [(file, Corrupt) for file in strange_archives(saved, tmp_path / "bad")]
    for file, error in [*bad_files(saved, tmp_path / "bad"), *strange]:
        line = here.refused("restore", file, tmp_path / "here" / "db", code=error.exit_code)
        assert len(line) < 400, line
        assert entries(tmp_path / "here") == [], file
        with pytest.raises(error):
            restore(file, tmp_path / "here" / "db")


def test_what_is_no_file_is_told_in_a_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, code in (("nowhere", 3), ("no/where", 3), (".", 5), ("pipe", 5), ("/dev/zero", 5)):
        here.refused("restore", tmp_path / name, tmp_path / "db", code=code)
    here.refused("restore", "", tmp_path / "db", code=8)
    assert entries(tmp_path) == ["pipe"]


def test_a_db_type_that_is_not_installed_has_its_pip_line(saved, tmp_path):
    line = here.refused("restore", changed(saved, tmp_path / "x", db_type="oracle"), tmp_path / "new", code=12)
    assert "there is no db type 'oracle'" in line


def test_a_restore_that_is_killed_leaves_no_db(saved, tmp_path):
    words = [*BALSAM, "restore", str(saved), str(tmp_path / "in" / "new")]
    (tmp_path / "in").mkdir()
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: entries(tmp_path / "in"), "the restore to begin")
        process.kill()
        process.communicate(timeout=60)
    if (tmp_path / "in" / "new").exists():  # it was quicker
        shutil.rmtree(tmp_path / "in" / "new")
    restore(saved, tmp_path / "in" / "new")
    assert entries(tmp_path / "in") == ["new"]


# ---- plugins


GOOD = """
    @hookimpl
    def balsam_backup(db, address, target):
        assert not target.exists()
        assert target.parent.stat().st_mode & 0o777 == 0o700
        real.balsam_backup(db, target)

    @hookimpl
    def balsam_restore(db, address, source):
        assert address is None
        real.balsam_restore(db, source)
"""


@pytest.fixture
def run(site, tmp_path):
    def balsam(*words):
        return child(*words, db=tmp_path / "db", env=site.environment)

    return balsam


def test_a_plugin_saves_and_restores(site, run, tmp_path):
    site.add("toy", more=GOOD)
    assert run("init", tmp_path / "db", "--db-type", "toy").code == 0
    assert run("run", "--", "true").code == 0
    done = run("backup", tmp_path / "x")
    assert done.code == 0, done
    done = run("restore", tmp_path / "x", tmp_path / "new")
    assert done.code == 0, done
    assert run("ls", "-o", "ids", "--db", tmp_path / "new").ids == [1]
    # Without the plugin its backup is of no use, and says so.
    assert "no db type 'toy'" in child.refused("restore", tmp_path / "x", tmp_path / "other", code=12)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (None, "lacks the hook balsam_backup"),
        ("1 / 0", "failed in balsam_backup: ZeroDivisionError"),
        ("raise SystemExit(0)", "failed in balsam_backup: SystemExit"),
        ("pass", "balsam_backup made no file"),
        ("target.mkdir()", "balsam_backup made no file"),
        ("target.symlink_to('/etc/passwd')", "balsam_backup made no file"),
        ("import os; os.mkfifo(target)", "balsam_backup made no file"),
        ("target.touch(); return 3", "balsam_backup returned int"),
        ("raise OSError(28, 'No space left on device')", "failed in balsam_backup: OSError"),
    ],
)
def test_a_plugin_that_fails_to_save_leaves_nothing(site, run, tmp_path, hook, words):
    site.add("toy", more="" if hook is None else f"@hookimpl\ndef balsam_backup(db, target):\n    {hook}\n")
    assert run("init", tmp_path / "db", "--db-type", "toy").code == 0
    (tmp_path / "out").mkdir()
    done = run("backup", tmp_path / "out" / "x")
    assert (done.code, done.out, done.err.count("\n")) == (12, "", 1), done
    assert "acme-toy 1.0" in done.err
    assert words in done.err
    assert entries(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("hook", "code", "words"),
    [
        (None, 12, "lacks the hook balsam_restore"),
        ("1 / 0", 12, "failed in balsam_restore: ZeroDivisionError"),
        ("pass", 8, "holds none of this DB's tables"),
        ("return 3", 12, "balsam_restore returned int"),
        ("source.unlink()", 8, "holds none of this DB's tables"),
    ],
)
def test_a_plugin_that_fails_to_restore_leaves_nothing(site, run, tmp_path, hook, code, words):
    save = GOOD.partition("\n    @hookimpl\n    def balsam_restore")[0]
    site.add("toy", more=save)
    if hook is not None:
        plugin = site.path / "acme_toy_plugin.py"
        plugin.write_text(f"{plugin.read_text()}\n@hookimpl\ndef balsam_restore(db, source):\n    {hook}\n")
    assert run("init", tmp_path / "db", "--db-type", "toy").code == 0
    assert run("backup", tmp_path / "x").code == 0
    (tmp_path / "out").mkdir()
    done = run("restore", tmp_path / "x", tmp_path / "out" / "new")
    assert (done.code, done.out, done.err.count("\n")) == (code, "", 1), done
    assert words in done.err
    assert entries(tmp_path / "out") == []


def test_a_database_may_be_larger_than_a_plain_tar_header_can_say(saved, tmp_path):
    size = 9 * 2**33  # bytes; a sparse file, with the digest of another one
    with tarfile.open(saved) as tar:
        manifest = {**json.load(tar.extractfile("balsam-backup.json")), "size": size}
    head = json.dumps(manifest).encode()
    with (tmp_path / "large").open("wb") as out:
        for name, length in (("balsam-backup.json", len(head)), ("database", size)):
            member = tarfile.TarInfo(name)
            member.size = length
            out.write(member.tobuf(tarfile.GNU_FORMAT))
            out.write(head.ljust(-(-len(head) // 512) * 512, b"\0") if name != "database" else b"")
    with (tmp_path / "large").open("rb") as stream:
        large = archive.Backup(stream, "large")
        assert large.manifest.size == size
        with pytest.raises(Corrupt, match="unexpected end of data"):
            large.extract(tmp_path / "out")


def test_a_header_that_claims_gigabytes_is_not_read(saved, tmp_path):
    member = tarfile.TarInfo("balsam-backup.json")
    member.size, member.type = 2**40, tarfile.XHDTYPE
    for place, start in (("first", 0), ("second", 512 + 1024)):
        raw = saved.read_bytes()
        (tmp_path / place).write_bytes(raw[:start] + member.tobuf(tarfile.GNU_FORMAT))
        os.truncate(tmp_path / place, 2**41)
        here.refused("restore", tmp_path / place, tmp_path / "new", code=Corrupt.exit_code)
