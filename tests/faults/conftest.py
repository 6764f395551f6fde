"""Fixtures of the fault tests.

Each fault has a quick form, for ``make test``, and a full one, for ``make test-faults``, which differ only in amounts.
Each gives a line of the table in ``docs/reference/fault-tests.md``, whose rows ids such as T01 are.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from amounts import FULL
from backend_dbs import SERVER_KINDS, make_db
from served_db import ServedDB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from served_db import ServedDB as Served

T = TypeVar("T")
TABLE = os.environ.get("BALSAM_FAULTS_TABLE")


@pytest.fixture
def amount() -> Callable[[T, T], T]:
    """``amount(quick, full)``: how much of it this run does."""
    return lambda quick, full: full if FULL else quick


@pytest.fixture
def verdict() -> Callable[[str, str, str], None]:
    """``verdict("T01", "server killed mid-batch", "200 kills, ...")``: what was seen, for the table."""

    def note(ident: str, fault: str, seen: str) -> None:
        print(f"{ident} {fault}: {seen}")  # noqa: T201  (for pytest -s)
        if TABLE:
            with Path(TABLE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"id": ident, "fault": fault, "seen": seen, "full": FULL}) + "\n")

    return note


@pytest.fixture
def make_served(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """``make_served(name="db", env={...})``: a DB, not yet served, whose server has this environment."""
    made: list[ServedDB] = []

    def make(name: str = "db", **settings: object) -> Served:
        made.append(ServedDB(tmp_path / name, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def served(make_served: Callable[..., Served]) -> Served:
    """A DB whose server runs."""
    db = make_served()
    db.start()
    return db


# ---------------------------------------------------------------------------------- backends with a server of their own


@pytest.fixture(scope="session", params=SERVER_KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each db type whose server is somebody else's program."""
    kind: str = request.param
    return kind


@pytest.fixture
def make_backend(run_directory: Path, kind: str, request: pytest.FixtureRequest) -> Iterator[Callable[..., Served]]:
    """``make_backend(name="db", env={...})``: a DB of the kind, not yet served."""
    with contextlib.ExitStack() as stack:
        yield lambda name="db", **settings: stack.enter_context(
            make_db(kind, run_directory / f"{kind} {name}", **settings)
        )


@pytest.fixture(scope="module")
def lasting_backend(run_directory: Path, kind: str) -> Iterator[Served]:
    """A DB of the kind, not stopped, which the tests of a module share; each names its jobs by itself."""
    with make_db(kind, run_directory / f"{kind} lasting") as db:
        yield db


@pytest.fixture
def backend(lasting_backend: Served) -> Served:
    """The same; its server runs."""
    lasting_backend.start()
    return lasting_backend
