"""A file system without locks: nothing is begun there, and nothing is touched."""

from __future__ import annotations

import errno
import hashlib
import shutil

from balsam_program import child
from shims import LUSTRE, NFS, FakeFS, NoLocks, preload

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import address
from balsam_core.errors import DBDirError
from balsam_core.system.filesystems import filesystem_type

NAMES = {NFS: "nfs", LUSTRE: "lustre"}


def fingerprint(path):
    """Return what a DB directory holds, but for logs and the file that is for locking."""
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.parent.name != "log" and file.name != ".dbserver.lock"
    }


def test_missing_locks_are_told_with_the_name_of_the_file_system(tmp_path, amount, verdict):
    """The file system has no locks: commands refuse it by its name and change nothing (T13)."""
    locks, disk = NoLocks(tmp_path), FakeFS(tmp_path)
    environment = preload(locks, disk)
    initialise(tmp_path / "old")
    with open_db(tmp_path / "old") as db:
        db.jobs.add(Job(name="kept", command="true"))
    before = fingerprint(tmp_path / "old")
    cases = [(errno.ENOLCK, NFS), (errno.ENOSYS, None), (errno.ENOSYS, LUSTRE), (errno.ENOLCK, None)]
    cases = cases[: amount(2, None)]
    for number, magic in cases:
        locks.fail(number)
        disk.off() if magic is None else disk.set(magic)
        hits = locks.hits
        name = NAMES.get(magic) or filesystem_type(tmp_path)
        for words in (["init", tmp_path / "new"], ["dbserver", "--path", tmp_path / "old"]):
            line = child.refused(*words, code=DBDirError.exit_code, env=environment)
            assert name in line
            assert "has no working file locks" in line
            assert "put the DB on another one" in line
        if magic is None:  # on a network file system this is refused anyway
            line = child.refused("ls", db=tmp_path / "old", code=DBDirError.exit_code, env=environment)
            assert "has no working file locks" in line
        assert locks.hits > hits
        assert not (tmp_path / "new").exists()
        assert not [one.name for one in tmp_path.iterdir() if "balsam-init" in one.name]
    assert fingerprint(tmp_path / "old") == before
    with open_db(tmp_path / "old") as db:
        assert address.read(db.directory) is None
        assert [name for (name,) in db.jobs.rows("name")] == ["kept"]
    shutil.rmtree(tmp_path / "old")
    verdict(
        "T13",
        "locks unsupported (ENOLCK, ENOSYS)",
        f"{len(cases)} cases: init, dbserver and clients refuse in a line that names the file system; no byte changed",
    )
