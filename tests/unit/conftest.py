"""Fixtures of the unit tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from balsam_core.dbdir.directory import DBDir

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def db(tmp_path: Path) -> DBDir:
    """An empty directory, as a DB of a type that no backend has."""
    path = tmp_path / "db"
    path.mkdir()
    return DBDir(path=path, db_type="toy", id="0" * 32)
