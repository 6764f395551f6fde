"""A database file that belongs to another DB directory is used by nobody: neither directly nor by a server."""

from __future__ import annotations

import shutil

import pytest

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.errors import BalsamError, Conflict
from balsam_core.watchdog import control

FOREIGN = "belongs to another DB directory"


@pytest.fixture
def foreign(tmp_path):
    """A DB whose file was replaced by another DB's."""
    one, other = (initialise(tmp_path / name, "sqlite").db for name in ("one", "other"))
    with open_db(other.path) as db:
        db.jobs.add(Job(name="foreign", command="true"))
    shutil.copy(other.path / "db.sqlite3", one.path / "db.sqlite3")
    return one


def test_it_is_neither_read_nor_written(foreign):
    with open_db(foreign.path) as db:
        with pytest.raises(Conflict, match=FOREIGN):
            db.jobs.count()
        with pytest.raises(Conflict, match=FOREIGN):
            db.jobs.add(Job(name="lost", command="true"))


def test_no_server_starts_on_it(foreign):
    with pytest.raises(BalsamError, match=FOREIGN):
        control.start(foreign)
    assert control.describe(foreign).state == "stopped"
