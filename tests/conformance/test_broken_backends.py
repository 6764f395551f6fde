"""The suite can fail: each fault that an author may make in the template fails the test that is there for it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from amounts import FULL

from balsam_core import testing

TEMPLATE = Path(testing.__file__).parent / "template" / "balsam_tiny"
SUBCLASS = """

from balsam_core.plugin import BalsamError, ServedTransport

class Own(ServedTransport):
    {}

@hookimpl
def balsam_open_transport(db):
    from balsam_tiny.engine import single_writer

    return Own(db, single_writer(db))
"""
LOSSY = """
    def perform(self, kind, data, request_id, deadline):
        if request_id is None or request_id.seq % 10 != 9:
            self.last = super().perform(kind, data, request_id, deadline)
        return self.last  # the answer to the write before, and this one is not made
"""
LEAKY = """
    def run(self, call, *, timeout=None):
        try:
            return super().run(call, timeout=timeout)
        except BalsamError as err:
            raise OSError(str(err)) from err
"""
BEHIND = """

@hookimpl
def balsam_open_transport(db):
    from balsam_core.plugin import NativeTransport
    from balsam_tiny.engine import is_retryable, make_engine

    return NativeTransport(make_engine(db, "writer"), is_retryable=is_retryable)
"""
BULK = """

@hookimpl
def balsam_bulk_insert(connection, table, columns, rows):
    marks = ", ".join("?" * len(columns))
    clean = [tuple(v.replace(chr(9), " ") if isinstance(v, str) else v for v in row) for row in rows]
    connection.exec_driver_sql(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", clean)
"""
TELLING = """
    def perform(self, kind, data, request_id, deadline):
        import contextlib, json, pathlib, socket

        place = json.loads(self.home.address_file.read_text())
        with contextlib.suppress(OSError), socket.create_connection((place["host"], place["port"]), 5) as peer:
            for key in self.home.keys.iterdir():
                peer.sendall(key.read_bytes())
        return super().perform(kind, data, request_id, deadline)
"""
WIDE = """from dataclasses import replace

    plan = write_server_plan(db, "0.0.0.0", port, engine="balsam_tiny.engine:single_writer")
    return replace(plan, host=host)"""
PROCESS = """import subprocess
    subprocess.Popen(["sleep", "600"], cwd=db.path, stdout=-3, stderr=-3, start_new_session=True)
    make_file(db)"""

SAVEPOINTS = """

class Own(sqlite3.Connection):
    def cursor(self, _=None):
        return super().cursor(Shim)

class Shim(sqlite3.Cursor):
    good, failed = {}, False  # how many ROLLBACK TO are right

    def execute(self, statement, parameters=()):
        if statement.startswith("ROLLBACK TO"):
            Shim.good -= 1
            if Shim.good < 0 and {}:
                self.failed = False
                for one in ("ROLLBACK", "BEGIN IMMEDIATE", "SAVEPOINT balsam_call"):
                    super().execute(one)
                return self
        try:
            return super().execute(statement, parameters)
        except sqlite3.Error:
            self.failed = True
            raise
"""
OWN_CONNECTION = ("engine", "check_same_thread=False)", "check_same_thread=False, factory=Own)")
ACKNOWLEDGED = "an_error_of_the_driver_undoes_its_own_call_only"

# What the author has done: (module, its right text or "" for the end, the wrong text), ...; and the test for it.
FAULTS: dict[str, tuple[Any, ...]] = {
    "init is done twice": ("a_refresh_changes_nothing", ("engine", "if not (db.path / NAME).exists():", "if True:")),
    "init fails the second time": (
        "a_refresh_changes_nothing",
        (
            "engine",
            "    if not (db.path / NAME).exists():",
            "    if db.settings: raise FileExistsError(NAME)\n    else:",
        ),
    ),
    "init leaves a process": ("init_leaves_no_process", ("backend", "make_file(db)", PROCESS)),
    "a secret is open to all": (
        "what_holds_secrets_is_open_to_nobody_else",
        ("backend", "make_file(db)", '(db.keys / "p").touch(); (db.keys / "p").chmod(0o644); make_file(db)'),
    ),
    "an absolute path is kept": (
        "a_moved_directory_is_the_same_db",
        ("engine", "(db.path / NAME).as_uri()", '__import__("pathlib").Path(db.settings["at"], NAME).as_uri()'),
        ("backend", '{"cache": cache}', '{"cache": cache, "at": db.settings.get("at", str(db.path))}'),
    ),
    "the import is heavy": ("its_import_loads_neither", ("backend", "from typing", "import sqlalchemy\nfrom typing")),
    "a capability is mistyped": (
        "its_capabilities_are_words",
        ("backend", "plugin_api=1,", 'plugin_api=1, capabilities=frozenset({"fast"}),'),
    ),
    "a reader writes": ("a_reader_cannot_write", ("engine", "query_only=ON", "query_only=OFF")),
    "a reader sees changes": (
        "a_reading_transaction_sees_one_state",
        ("engine", '"BEGIN" if reads', '"SELECT 1" if reads'),
    ),
    "nothing is rolled back": ("a_writer_commits_or_leaves_nothing", ("engine", "conn.exec_driver_sql(", "str(")),
    "claims overlap": (
        "claims_of_many_processes_are_disjoint",
        ("engine", "conn.exec_driver_sql(", "str("),
        ("engine", "    return engine", "    engine.dialect.update_returning_multifrom = False\n    return engine"),
    ),
    "a busy database is an error": (
        "many_writers_lose_and_double_nothing",
        ("engine", "in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}", "in set()"),
        ("engine", "timeout=1.0", "timeout=0.0"),
    ),
    "writes are lost": ("many_writers_lose_and_double_nothing", ("backend", "", SUBCLASS.format(LOSSY))),
    "a lock that is held is an error": (
        "a_write_waits_for_a_lock_that_another_holds_for_seconds",
        ("engine", "in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}", "in set()"),
        ("engine", "timeout=1.0", "timeout=0.0"),
    ),
    "keys are no keys": ("overlapping_keys_are_no_error_and_one_job_each", ("engine", "conn.exec_driver_sql(", "str(")),
    "it listens everywhere": (
        "a_server_listens_on_the_published_address_only",
        ("backend", 'return write_server_plan(db, host, port, engine="balsam_tiny.engine:single_writer")', WIDE),
    ),
    "other programs are told secrets": (
        "another_program_at_a_dead_servers_port_learns_nothing",
        ("backend", "", SUBCLASS.format(TELLING).replace("return Own(db", "Own.home = db\n    return Own(db")),
    ),
    "errors are its own": ("faults_of_the_caller_are_told_apart", ("backend", "", SUBCLASS.format(LEAKY))),
    "the server is passed by": ("nothing_passes_by_a_server_that_hangs", ("backend", "", BEHIND)),
    "savepoints undo all": (ACKNOWLEDGED, OWN_CONNECTION, ("engine", "", SAVEPOINTS.format(0, "True"))),
    "savepoints undo all after an error": (
        ACKNOWLEDGED,
        OWN_CONNECTION,
        ("engine", "", SAVEPOINTS.format(0, "self.failed")),
    ),
    "savepoints undo all, and the start doesn't show it": (
        ACKNOWLEDGED,
        OWN_CONNECTION,
        ("engine", "", SAVEPOINTS.format(2, "self.failed")),
    ),
    "a bulk insert changes texts": ("a_bulk_insert_stores_what_a_plain_one_does", ("backend", "", BULK)),
}


def install(site: Path) -> Path:
    """Make the template's distribution in a folder; who has it on ``PYTHONPATH`` has the backend."""
    info = site / "balsam_tiny-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: balsam-tiny\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[balsam.backends]\ntiny = balsam_tiny.backend\n")
    return Path(shutil.copytree(TEMPLATE, site / "balsam_tiny", ignore=shutil.ignore_patterns("__pycache__")))


def run(site: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "balsam_core.testing", "tiny", "-q", *words],
        env={**os.environ, "PYTHONPATH": str(site), "TMPDIR": str(site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


# Every other one in a quick run.
@pytest.mark.parametrize("fault", FAULTS if FULL else list(FAULTS)[::2])
def test_a_fault_fails_its_test(fault: str, tmp_path: Path) -> None:
    package = install(tmp_path)
    test, *edits = FAULTS[fault]
    for name, right, wrong in edits:
        module = package / f"{name}.py"
        text = module.read_text()
        assert right in text, "the template has changed"
        module.write_text(text.replace(right, wrong) if right else text + wrong)
    done = run(tmp_path, "-x", "-k", test)
    assert done.returncode == 1, done.stdout
    assert f"::test_{test}" in done.stdout, done.stdout
    assert not list(tmp_path.glob("balsam-testing-*"))
    if fault.startswith("savepoints"):
        at_start = "the engine's savepoints don't work" in done.stdout
        assert at_start != ("the start" in fault), done.stdout


# The template's hooks and imports as they were when these two hooks still took the published address.
FIRST_IMPORTS = "from balsam_core.plugin import DBType, InvalidInput, ServerPolicy, Unavailable, hookimpl, shown\n"
FIRST_HOOKS = """

@hookimpl
def balsam_init_db(db: DBDir, options: Mapping[str, str]) -> Mapping[str, str]:
    from balsam_tiny.engine import make_file

    cache = options.get("cache", db.settings.get("cache", "1000"))
    if not cache.isdecimal():
        raise InvalidInput(f"the option cache is {cache!r}; it must be a number of kilobytes")
    make_file(db)
    return {"cache": cache}


@hookimpl
def balsam_open_transport(db: DBDir, address: Address | None) -> Transport:
    from balsam_core.plugin import ServedTransport
    from balsam_tiny.engine import single_writer

    return ServedTransport(db, single_writer(db))


@hookimpl
def balsam_create_engine(db: DBDir, address: Address | None, role: EngineRole) -> Engine:
    from balsam_tiny.engine import make_engine

    if address is not None and role != "reader":
        raise Unavailable(f"{shown(db.path)} is served: stop the server first with balsam dbserver --stop")
    return make_engine(db, role)
"""


def test_a_backend_of_the_first_contract_still_passes(tmp_path: Path) -> None:
    backend = install(tmp_path) / "backend.py"
    text = backend.read_text()
    (imports,) = (line for line in text.splitlines(keepends=True) if line.startswith("from balsam_core.plugin import"))
    backend.write_text(text.replace(imports, FIRST_IMPORTS) + FIRST_HOOKS)  # the later definitions count
    done = run(tmp_path, "-k", "test_identity or test_init or test_engine or test_operation")
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout.splitlines()[-1]


COPIES = """

@hookimpl
def balsam_backup(db, target):
    target.write_bytes((db.path / "tiny.db").read_bytes())  # nobody has it open


@hookimpl
def balsam_restore(db, source):
    (db.path / "tiny.db").write_bytes(source.read_bytes())
"""


def test_an_engine_whose_files_nobody_else_may_open_passes(tmp_path: Path) -> None:
    """The other kind of single writer: the capability ``served-only``."""
    package = install(tmp_path)
    backend, engine = package / "backend.py", package / "engine.py"
    backend.write_text(
        backend.read_text().replace("plugin_api=1,", 'plugin_api=1, capabilities=frozenset({"served-only"}),') + COPIES
    )
    refusal = (
        '    if role in ("reader", "writer"):\n'
        "        from balsam_core.plugin import ServerNotRunning\n"
        '        raise ServerNotRunning(f"no server runs; start it: balsam dbserver --path={db.path}")\n'
        "\n    def connect("
    )
    engine.write_text(
        engine.read_text()
        .replace("    def connect(", refusal, 1)
        .replace('version="PRAGMA data_version",', "shared=False,")
        .replace("journal_mode=WAL", "locking_mode=EXCLUSIVE")
    )
    done = run(tmp_path, "-vv", "-k", "test_operation or test_server or test_engine or test_exactly_once or backup")
    assert done.returncode == 0, done.stdout
    assert "[direct" not in done.stdout
    assert "test_a_restored_backup_is_the_db_as_it_was[served] PASSED" in done.stdout
