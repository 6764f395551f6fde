"""A backend that is little but its server, installed by a dist-info folder, so that child processes have it too.

The server is a script that listens on TCP and answers ``ready``. It obeys files in the DB directory: ``fail`` (exit at
once, saying what the file says, with the exit code in ``code``), ``mute`` (accept and say nothing), ``busy`` (the same,
burning CPU time).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
from typing import TYPE_CHECKING

import sqlalchemy

from balsam_core.backends import registry
from balsam_core.dbdir.address import withdraw
from balsam_core.dbdir.directory import DBDir, make_tree, write_config
from balsam_core.dbdir.lease import LeaseObserver
from balsam_core.schema import migrate
from balsam_core.system import processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

    from balsam_core.dbdir.lease import Lease

SERVER = """
    import os, signal, socket, sys
    from pathlib import Path

    folder, host, port = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    if (folder / "fail").exists():
        print((folder / "fail").read_text().replace("PID", str(os.getpid())), file=sys.stderr)
        sys.exit(int((folder / "code").read_text()) if (folder / "code").exists() else 1)
    if (folder / "deaf").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=100)
    print(f"listening on {port}", flush=True)
    while True:
        connection, _ = listener.accept()
        if (folder / "busy").exists():
            while (folder / "busy").exists():
                pass
        with connection:
            if not (folder / "mute").exists():
                connection.sendall(b"ready")
"""

MODULE = """
    import socket, sys
    from pathlib import Path
    from balsam_core.plugin import DBType, ServerNotRunning, ServerPlan, ServerPolicy, hookimpl, published_address

    @hookimpl
    def balsam_db_type():
        return DBType(name="{name}", title="Toy", server=ServerPolicy.{policy}, plugin_api=1)

    @hookimpl
    def balsam_init_db(db, options):
        return {{}}

    @hookimpl
    def balsam_start_server(db, host, port):
        def is_ready(seconds):
            try:
                with socket.create_connection((host, port), timeout=seconds) as connection:
                    connection.settimeout(seconds)
                    return connection.recv(5) == b"ready"
            except OSError:
                return False

        script = Path(__file__).with_name("toy_server.py")
        argv = [sys.executable, "-I", "-S", str(script), str(db.path), host, str(port)]
        return ServerPlan(
            argv=argv, host=host, port=port, protocol="toy/1", is_ready=is_ready,
            details={{"colour": "red"}}, stop=[(15, 2.0)], ready_timeout=20.0,
        )

    @hookimpl
    def balsam_open_transport(db):
        raise ServerNotRunning("the toy has no transport")

    @hookimpl
    def balsam_create_engine(db, role):
        import sqlalchemy

        with (db.path / "engines").open("a") as file:
            file.write(f"{{role}} {{published_address(db) is not None}}\\n")
        return sqlalchemy.create_engine(f"sqlite:///{{db.path}}/toy.db")
"""

TYPES = {"toy": "OPTIONAL", "toyrequired": "REQUIRED", "toynone": "NONE"}


def install(site: Path) -> None:
    """Make the distribution in a folder; who has it on ``PYTHONPATH`` has the backends."""
    info = site / "balsam_toy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: balsam-toy\nVersion: 1.0\n")
    lines = [f"{name} = {name}_plugin" for name in TYPES]
    (info / "entry_points.txt").write_text("\n".join(["[balsam.backends]", *lines, ""]))
    (site / "toy_server.py").write_text(textwrap.dedent(SERVER))
    for name, policy in TYPES.items():
        (site / f"{name}_plugin.py").write_text(textwrap.dedent(MODULE).format(name=name, policy=policy))


class Toys:
    """Makes DBs of the toy backends; ends what serves them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._dbs: list[DBDir] = []
        self._seen: dict[tuple[int, float], int] = {}

    def __call__(self, name: str = "db", db_type: str = "toy") -> DBDir:
        """Make one."""
        path = self._folder / name
        path.mkdir(mode=0o700, parents=True)
        db = DBDir(path=path, db_type=db_type, id=os.urandom(16).hex())
        make_tree(path)
        withdraw(db)
        write_config(db)
        self._dbs.append(db)
        return db

    def make_tables(self, db: DBDir) -> None:
        """Make the tables of a DB, as ``balsam init`` does."""
        engine = sqlalchemy.create_engine(f"sqlite:///{db.path}/toy.db")
        migrate.upgrade(engine, db_id=db.id)
        engine.dispose()

    def lease(self, db: DBDir) -> Lease | None:
        """Return the lease of a DB; the processes that it names are ended after the test."""
        lease = LeaseObserver(db).observe().lease
        if lease and lease.is_of_this_machine:
            self._seen[lease.pid, lease.start] = self._seen[lease.child_pid, lease.child_start] = 1
        return lease

    def close(self) -> None:
        """Kill what still runs."""
        for db in self._dbs:
            with contextlib.suppress(OSError):
                self.lease(db)
        for pid, start in self._seen:
            if pid != os.getpid():
                processes.end_process(pid, start, [(signal.SIGKILL, 10.0)])


@contextlib.contextmanager
def toys(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[Toys]:
    """Install the backends for this process and its children, with a state directory of their own."""
    site = folder / "site"
    install(site)
    patch.syspath_prepend(site)
    patch.setenv("PYTHONPATH", str(site))
    patch.setenv("XDG_STATE_HOME", str(folder / "state"))
    registry.installed.cache_clear()
    made = Toys(folder)
    try:
        yield made
    finally:
        made.close()
        registry.installed.cache_clear()
        for name in TYPES:
            sys.modules.pop(f"{name}_plugin", None)
