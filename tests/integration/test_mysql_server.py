"""A DB on a MariaDB server of its own: made, served, killed, stopped, and closed to everybody else.

All tests use one DB, whose path is as nasty as a path can be.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from pathlib import Path

import pytest
from balsam_program import here
from exact import check, rows_by_api, writers
from served_db import ServedDB

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.errors import Unavailable
from balsam_core.model.calls import AddJobs
from balsam_core.testing.tools import wait_until

MySQLdb = pytest.importorskip("MySQLdb")
pytestmark = pytest.mark.skipif(
    not shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin"), reason="no MariaDB server programs"
)

NASTY = "a db 'with' \"quotes\", \\b #hash; $(x) ü\N{SNOWMAN} %s\nnew=line "


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    path = tmp_path_factory.mktemp("mysql") / NASTY / ("long" * 40)
    db = ServedDB(path, db_type="mysql")
    try:
        db.start()
        yield db
    finally:
        db.close()


@pytest.fixture
def backend():
    return registry.load("mysql")


@pytest.fixture
def login(served):
    """A function that opens a driver's connection, as the account with its password unless told otherwise."""
    with contextlib.ExitStack() as stack:

        def connect(**changes):
            settings = {
                "host": served.address.host,
                "port": served.address.port,
                "user": "balsam",
                "password": password_of(served),
                "connect_timeout": 10,
                "ssl": {"ca": str(served.path / "keys" / "mysql_certificate.pem")},
            }
            connection = MySQLdb.connect(**{**settings, **changes})
            stack.callback(connection.close)
            return connection

        yield connect


def password_of(served):
    return (served.path / "keys" / "mysql_password").read_text()


def ask(connection, query):
    cursor = connection.cursor()
    cursor.execute(query)
    return cursor.fetchall()


# ------------------------------------------------------------------------------------------------------------ everyday


def test_everything_works_as_on_other_databases(served):
    with open_db(served.path) as db:
        parent = Job(command="true", workflow="everyday", name="Straße \N{SNOWMAN} \U0001f600")
        db.jobs.add([parent, Job(command="true", workflow="everyday", name="strasse", parents=[parent])])
        found = db.jobs.where(workflow="everyday")
        assert sorted(job.name for job in found) == ["Straße \N{SNOWMAN} \U0001f600", "strasse"]
        assert found.kill() == 2
    assert "everyday" in here("ls", "--wf", "everyday", db=served.path).out


def test_neither_variables_nor_option_files_lead_anybody_astray(tmp_path):
    (tmp_path / ".my.cnf").write_text("[client]\nhost=192.0.2.1\nuser=x\npassword=x\n[mysqld]\nport=1\nsocket=/x\n")
    wrong = {"HOME": str(tmp_path), "MYSQL_HOME": str(tmp_path), "MYSQL_HOST": "192.0.2.1", "MYSQL_TCP_PORT": "1"}
    wrong |= {"MYSQL_UNIX_PORT": "/nowhere", "MYSQL_PWD": "x", "MYSQL_GROUP_SUFFIX": "x", "MARIADB_HOME": "/nowhere"}
    wrong |= {"MARIADB_PLUGIN_DIR": "/nowhere", "LC_ALL": "nowhere", "LANGUAGE": "de"}
    db = ServedDB(tmp_path / "db", wrong, db_type="mysql")
    try:
        db.start()
        here.good("run", "--", "true", db=db.path, env=wrong)
        here.good("backup", tmp_path / "saved", db=db.path, env=wrong)
    finally:
        db.close()


def test_names_are_compared_byte_by_byte(served):
    with open_db(served.path) as db:
        db.jobs.add([Job(command="true", workflow="bytes", key=key) for key in ("key", "KEY", "kéy")])
        assert db.jobs.where(workflow="bytes").count() == 3


def test_without_its_server_each_command_says_how_to_start_it(tmp_path):
    db = initialise(tmp_path / "db", "mysql").db
    done = here("ls", db=db.path)
    assert (done.code, done.err.count("\n")) == (6, 1)
    assert f"start it with balsam dbserver --path={db.path}" in done.err


def test_init_again_keeps_everything_and_can_change_the_durability(served):
    before = password_of(served)
    assert (
        initialise(served.path, options={"durability": "relaxed", "memory": "256M"}).db.settings["durability"]
        == "relaxed"
    )
    plan = registry.load("mysql").start_server(initialise(served.path).db, "127.0.0.1", 1, tls=True)
    assert {"--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=256M"} <= {*plan.argv}
    assert initialise(served.path, options={"durability": "full"}).db.settings["durability"] == "full"
    assert password_of(served) == before
    with pytest.raises(Exception, match="must be full or relaxed"):
        initialise(served.path, options={"durability": "none"})
    with pytest.raises(Exception, match="a size like 512M or 2G"):
        initialise(served.path, options={"memory": "much"})


def test_a_read_sees_one_state_whatever_others_commit(served, backend):
    query = "SELECT count(*) FROM workflows"
    engine = backend.create_engine(served.dir, "writer")
    with engine.connect() as plain, engine.connect() as writes:
        reads = plain.execution_options(balsam_reads=True)
        before = reads.exec_driver_sql(query).scalar()
        writes.exec_driver_sql("INSERT INTO workflows (id, name) VALUES (9000, 'meanwhile')")
        writes.commit()
        assert reads.exec_driver_sql(query).scalar() == before
        with pytest.raises(Exception, match="READ ONLY"):
            reads.exec_driver_sql("DELETE FROM workflows")
        reads.rollback()
        assert reads.exec_driver_sql(query).scalar() == before + 1
        writes.exec_driver_sql("DELETE FROM workflows WHERE id = 9000")
        writes.commit()
    # The same connection, now for the other kind.
    with engine.connect() as again:
        assert again.exec_driver_sql("SELECT @@tx_isolation, @@tx_read_only").one() == ("READ-COMMITTED", 0)
    engine.dispose()


def test_a_lock_that_is_held_too_long_is_an_error_that_is_repeated(served, backend, login):
    with open_db(served.path) as db:
        db.jobs.add(Job(command="true"))  # so that there is something to be locked
    holder, watcher = login(database="balsam"), login()

    def waits():
        return int(ask(watcher, "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_waits'")[0][1])

    before = waits()
    ask(holder, "SELECT * FROM counters FOR UPDATE")
    answers = []
    with backend.open_transport(served.dir) as transport:
        with transport.engine.connect() as conn:  # which the pool keeps
            conn.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 1")
            conn.commit()
        call = AddJobs(jobs=[Job(command="true", workflow="locked")])
        adding = threading.Thread(target=lambda: answers.append(transport.run(call, timeout=60)))
        adding.start()
        wait_until(lambda: waits() >= before + 2, "the second attempt")
        assert not answers
        holder.rollback()
        adding.join(60)
        assert answers[0].first_id > 0
    with open_db(served.path) as db:
        assert db.jobs.where(workflow="locked").count() == 1


def test_a_forked_child_leaves_its_parents_connections_alone(served, backend):
    engine = backend.create_engine(served.dir, "writer")
    with engine.connect() as conn:
        number = conn.exec_driver_sql("SELECT connection_id()").scalar()
        child = os.fork()
        if child == 0:
            code = 1
            with contextlib.suppress(BaseException):
                with contextlib.suppress(MySQLdb.Error):
                    conn.connection.driver_connection.close()  # would say goodbye in the parent's name
                code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert conn.exec_driver_sql("SELECT connection_id()").scalar() == number
    engine.dispose()


# ------------------------------------------------------------------------------------------------------------ security


def test_the_only_accounts_are_balsams_and_a_locked_one(served, login):
    grants = ask(login(), "SHOW GRANTS")
    assert len(grants) == 2
    assert re.match(r"GRANT USAGE ON \*\.\* TO `balsam`@`%` IDENTIFIED BY PASSWORD '\*[0-9A-F]{40}'$", grants[0][0])
    assert grants[1][0] == "GRANT ALL PRIVILEGES ON `balsam`.* TO `balsam`@`%`"
    assert {name for (name,) in ask(login(), "SHOW DATABASES")} == {"balsam", "information_schema"}
    # The table itself, as a server without any accounts sees it: on a copy, since two can't share the data.
    rows = accounts_of(served)
    assert set(rows) == {("%", "balsam"), ("localhost", "mariadb.sys")}
    assert rows["%", "balsam"]["access"] == 0
    assert rows["%", "balsam"]["plugin"] == "mysql_native_password"
    assert re.fullmatch(r"\*[0-9A-F]{40}", rows["%", "balsam"]["authentication_string"])
    assert rows["localhost", "mariadb.sys"]["account_locked"] is True


def accounts_of(served):
    """Return (host, user) -> properties from the server's own table, read in its bootstrap mode from a copy."""
    copy = served.path.parent / "copy"
    shutil.copytree(served.path / "mysql" / "data" / "mysql", copy / "mysql")
    out = copy / "accounts"
    try:
        script = f"SELECT Host, User, Priv FROM mysql.global_priv INTO OUTFILE '{sql(out)}';\n"
        argv = ["mariadbd", "--no-defaults", "--bootstrap", f"--datadir={copy}", "--skip-innodb", "--log-warnings=0"]
        argv += ["--default-storage-engine=Aria", "--loose-skip-partition", *as_root()]
        path = {"PATH": os.environ["PATH"] + ":/usr/sbin"}
        subprocess.run(argv, input=script.encode(), check=True, capture_output=True, timeout=60, env=path)
        rows = [line.split("\t") for line in out.read_text().splitlines()]
        return {(host, user): json.loads(priv.replace("\\\\", "\\")) for host, user, priv in rows}
    finally:
        shutil.rmtree(copy)


def sql(path):
    return str(path).replace("\\", "\\\\").replace("'", "\\'")


def as_root():
    return ["--user=root"] if os.geteuid() == 0 else []


@pytest.mark.parametrize("user", ["root", "", "balsam", "mariadb.sys", "mysql", "admin"])
@pytest.mark.parametrize("password", ["", "balsam"])
def test_nobody_gets_in_without_the_password(login, user, password):
    with pytest.raises(MySQLdb.OperationalError, match=r"Access denied|locked"):
        login(user=user, password=password)


def test_it_listens_at_one_port_of_the_loopback_and_nowhere_else(served, login):
    with pytest.raises(MySQLdb.OperationalError, match=r"Can't connect"):
        login(host="::1")
    assert ask(login(), "SELECT @@socket, @@bind_address, @@skip_name_resolve") == (("", "127.0.0.1", 1),)
    files = [str(file.readlink()) for file in Path(f"/proc/{served.server}/fd").iterdir()]
    inodes = {match[1] for file in files if (match := re.fullmatch(r"socket:\[(\d+)\]", file))}
    unix = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    assert not inodes & unix


def test_the_settings_are_the_safe_ones(login):
    wanted = {
        "character_set_server": "utf8mb4",
        "collation_server": "utf8mb4_bin",
        "innodb_doublewrite": "ON",
        "innodb_flush_log_at_trx_commit": "1",
        "local_infile": "OFF",
        "log_bin": "OFF",
        "lock_wait_timeout": "30",
        "max_allowed_packet": str(64 * 1024 * 1024),
        "max_connections": "300",
        "performance_schema": "OFF",
        "tx_isolation": "READ-COMMITTED",
    }
    found = dict(ask(login(), "SHOW GLOBAL VARIABLES"))
    assert {name: found[name] for name in wanted} == wanted
    assert "STRICT_TRANS_TABLES" in found["sql_mode"]
    with pytest.raises(MySQLdb.OperationalError, match="Access denied"):
        login(ssl_mode="DISABLED", ssl=None)
    collations = ask(login(), "SELECT @@collation_database")
    assert collations == (("utf8mb4_bin",),)
    tables = ask(
        login(),
        "SELECT DISTINCT engine, table_collation FROM information_schema.tables WHERE table_schema='balsam'",
    )
    assert tables == (("InnoDB", "utf8mb4_bin"),)


def test_no_secret_is_in_arguments_environments_or_logs_and_files_are_private(served):
    secret = password_of(served).encode()
    assert len(secret) >= 32
    for pid in (served.server, served.watchdog):
        for name in ("cmdline", "environ"):
            assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
    readable = {served.path / "keys" / "mysql_password"}
    for file in (file for file in served.path.rglob("*") if file.is_file()):
        assert file in readable or secret not in file.read_bytes(), file
    for folder in (served.path, *(served.path / name for name in ("keys", "log", "mysql", "mysql/data"))):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((served.path / "keys" / "mysql_password").stat().st_mode) == 0o600


@pytest.mark.parametrize("what", ["open to other users", "missing"])
def test_a_password_file_that_is_missing_or_open_ends_a_call_at_once(served, backend, what):
    file = served.path / "keys" / "mysql_password"
    aside = file.with_name("aside")
    file.chmod(0o644) if what != "missing" else file.rename(aside)
    begun = time.monotonic()
    try:
        with open_db(served.path) as db, pytest.raises(Exception, match=what):
            db.jobs.count()
    finally:
        file.chmod(0o600) if what != "missing" else aside.rename(file)
    assert time.monotonic() - begun < 10


def test_a_wrong_password_ends_a_call_at_once(served):
    file = served.path / "keys" / "mysql_password"
    before = file.read_text()
    file.write_text("wrong")
    try:
        with (
            open_db(served.path) as db,
            pytest.raises(
                Unavailable,
                match=r"refused balsam .*keys/mysql_password.? holds another server's password: restore keys/",
            ),
        ):
            db.jobs.count()
    finally:
        file.write_text(before)


# -------------------------------------------------------------------------------------------------------------- faults


def test_kill_9_of_the_server_loses_and_doubles_nothing(served, tmp_path):
    with writers(served.path, 6, tmp_path) as clients:
        clients.begin()
        for _ in range(2):
            clients.wait_for_more(60)
            served.wait_for_another(served.kill_server())
        clients.wait_for_more(60)
        clients.stop()
        clients.finish()
        report = check(clients.journals, rows_by_api(served.path))
    report.assert_exact()
    assert report.acked >= 180
    assert report.longest_stall < 15


# -------------------------------------------------------------------------------------------------------------- backup


def test_a_backup_of_a_database_in_use_becomes_a_new_db(served, tmp_path):
    with open_db(served.path) as db:
        db.jobs.add([Job(command="true", workflow="saved", name=f"'{i}' \\ \N{SNOWMAN}\n"[:9]) for i in range(100)])
        names = sorted(job.name for job in db.jobs.where(workflow="saved"))
        everything = db.jobs.count()
    saved = tmp_path / "saved.balsam"
    here.good("backup", saved, db=served.path)
    assert password_of(served).encode() not in saved.read_bytes()
    here.good("restore", saved, tmp_path / "restored")
    again = ServedDB(tmp_path / "restored", db_type="mysql")
    try:
        again.start()
        with open_db(again.path) as db:
            assert sorted(job.name for job in db.jobs.where(workflow="saved")) == names
            assert db.jobs.count() == everything
        assert password_of(again) != password_of(served)
    finally:
        again.close()


def test_a_backup_that_is_cut_short_is_refused(served, backend, tmp_path):
    whole = tmp_path / "whole"
    backend.backup(served.dir, served.address, whole)
    assert stat.S_IMODE(whole.stat().st_mode) == 0o600
    half = tmp_path / "half"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(Exception, match="cut short"):
        backend.restore(served.dir, served.address, half)
