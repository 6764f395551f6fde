"""The parts of the MySQL plugin that need no server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from balsam_core.backends import registry
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BackendError, Corrupt, InvalidInput, Unavailable
from balsam_core.plugin_types import ServerPolicy

pytest.importorskip("balsam_mysql")
from balsam_core.plugin import ServerAccount
from balsam_mysql import adopting, bootstrap, configuration, errors, programs
from balsam_mysql.programs import Programs
from balsam_mysql.url import Target


class DriverError(Exception):
    """As the driver's: a number and a text."""


def test_loading_the_plugin_loads_no_driver_and_no_sqlalchemy():
    code = "import sys, balsam_mysql.backend; print({'MySQLdb', 'sqlalchemy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_an_adopted_db_needs_no_server(tmp_path):
    backend = registry.load("mariadb")
    for settings, policy in (({}, ServerPolicy.REQUIRED), ({"url": "mysql://u@h/d"}, ServerPolicy.NONE)):
        db = DBDir(path=tmp_path, db_type="mysql", id="0" * 32, settings=settings)
        assert backend.server_policy(db) is policy


@pytest.mark.parametrize(
    ("url", "parameters", "words"),
    [
        (
            "mysql://me@db.example/jobs",
            {"host": "db.example", "port": 3306, "user": "me", "database": "jobs"},
            ["--user=me", "--host=db.example", "--port=3306"],
        ),
        (
            "mariadb+mysqldb://m%40e@localhost:99/a%20b?ssl_mode=VERIFY_IDENTITY",
            {"host": "127.0.0.1", "port": 99, "user": "m@e", "database": "a b", "ssl_mode": "VERIFY_IDENTITY"},
            ["--user=m@e", "--host=127.0.0.1", "--port=99", "--ssl", "--ssl-verify-server-cert"],
        ),
        (
            "mysql://me@/jobs?unix_socket=/run/s",
            {"unix_socket": "/run/s", "user": "me", "database": "jobs"},
            ["--user=me", "--socket=/run/s"],
        ),
        (
            "mysql://me@[::1]:17331,h2/jobs",
            {"host": "::1", "port": 17331, "user": "me", "database": "jobs"},
            ["--user=me", "--host=::1", "--port=17331"],
        ),
        (
            # Told to require TLS but not to verify, the client library would go on without.
            "mysql://me@h/jobs?ssl_ca=/&ssl_mode=REQUIRED",
            {
                "host": "h",
                "port": 3306,
                "user": "me",
                "database": "jobs",
                "ssl": {"ca": "/"},
                "ssl_mode": "VERIFY_CA",
            },
            [
                "--user=me",
                "--host=h",
                "--port=3306",
                "--ssl-ca=/",
                "--ssl",
                "--ssl-verify-server-cert",
            ],
        ),
    ],
)
def test_urls_become_parameters_and_arguments(url, parameters, words):
    assert Target.parse(url).parameters() == parameters
    assert Target.parse(url).arguments("mariadb") == words
    assert ("--ssl-mode=" in " ".join(Target.parse(url).arguments("mysql"))) == ("ssl_mode" in parameters)


def test_a_url_names_several_servers_in_a_fixed_order():
    target = Target.parse("mysql://me@h2:17332,H1,[::1]:5/jobs?ssl_mode=PREFERRED")
    assert target.hosts == (("h2", 17332), ("h1", 3306), ("::1", 5))
    assert target.endpoint == "h2:17332 or h1:3306 or [::1]:5"
    assert [one.parameters()["host"] for one in target.each()] == ["h2", "h1", "::1"]
    assert {one.user for one in target.each()} == {"me"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mysql:",
        "mysql://me@h",
        "mysql://h/d",
        "mysql://me@h:99999/d",
        "mysql://me@h/d/e",
        "mysql://me@h/d#x",
        "mysql://me:secret@h/d",
        "mysql://me@h/d?ssl_mode",
        "mysql://me@h/d?ssl_mode=DISABLED&ssl_mode=DISABLED",
        "mysql://me@h/d?ssl_mode=REQUIRED",
        "mysql://me@[::1/d",
        "mysql://me@::1/d",
        "mysql://me@h1,/d",
        "mysql://me@h1,h2:x/d",
        "mysql://me@h1:0,h2/d",
        "mysql://me:secret@h1:1,[::1]:2/d",
    ],
)
def test_wrong_urls_are_refused_without_showing_a_password(url):
    with pytest.raises(InvalidInput) as caught:
        Target.parse(url)
    assert "secret" not in str(caught.value)


def test_errors_are_told_apart():
    for code in (1205, 1213, 1020, 3572):
        assert errors.is_retryable(DriverError(code, "x"))
        assert not errors.is_lost(DriverError(code, "x"))
    for code in (1053, 1927, 2006, 2013, 2055, 4031, 1180):
        assert errors.is_lost(DriverError(code, "x"))
        assert not errors.is_retryable(DriverError(code, "x"))
    for code, kind, text in (
        (1114, Unavailable, "disk is full"),
        (1030, None, None),
        (1290, Unavailable, "takes no writes"),
        (1142, BackendError, "lacks a right"),
        (1054, BackendError, "refuses a statement"),
        (1064, BackendError, "refuses a statement"),
        (1153, InvalidInput, "max_allowed_packet"),
        (1406, InvalidInput, "can't hold"),
        (1034, Corrupt, "damaged"),
        (1062, None, None),
    ):
        found = errors.translate(DriverError(code, "two\nlines"))
        assert (type(found) if found else None) is kind
        assert found is None or (text in str(found) and "\n" not in str(found))
    full = errors.translate(DriverError(1030, 'Got error 28 "No space left on device" from storage engine InnoDB'))
    assert "disk is full" in str(full)
    assert errors.permanent_error(DriverError(2003, "Can't connect"), {"host": "h"}) is None
    assert (
        errors.permanent_error(DriverError(2026, "TLS/SSL error: unexpected eof while reading"), {"host": "h"}) is None
    )
    assert "trusted" in str(
        errors.permanent_error(DriverError(2026, "TLS/SSL error: self-signed certificate"), {"host": "h"})
    )
    denied = DriverError(1045, "Access denied"), {"host": "h", "user": "me"}
    assert "refused me (Access denied): check the user and the password" in str(errors.permanent_error(*denied))
    own = str(errors.permanent_error(*denied, Path("/db/keys/mysql_password")))
    assert own.endswith(": /db/keys/mysql_password holds another server's password: restore keys/")


def test_a_client_program_that_is_missing_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendError, match=r"mariadb-dump is not found: .*apt-get install mariadb-client"):
        programs.find_client(("mariadb-dump", "mysqldump"), None, "mariadb-client")


SAFE = {
    "version": "10.11.19-MariaDB",
    "engines": "InnoDB,Aria",
    "collation": "('utf8mb4_nopad_bin',)",
    "tls": "TLS_AES_256_GCM_SHA384",
    "log_bin": "ON",
    "binlog_format": "MIXED",
    "sync_binlog": "1",
    "innodb_flush_log_at_trx_commit": "1",
    "innodb_doublewrite": "ON",
    "max_allowed_packet": str(64 * 1024 * 1024),
    "replicas": "0",
    "wsrep_on": "OFF",
}
TARGET = Target.parse("mysql://me@db.example/jobs?ssl_ca=/")
UNSURE = Target.parse("mysql://me@db.example/jobs?ssl_mode=PREFERRED")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"version": "10.5.9-MariaDB"}, "MariaDB 10.6, MySQL 8.0 or newer is needed"),
        ({"version": "5.5.5-10.5.9-MariaDB"}, "or newer is needed"),
        ({"version": "5.7.44-log"}, "or newer is needed"),
        ({"version": "?"}, "or newer is needed"),
        ({"engines": "Aria"}, "lacks InnoDB"),
        ({"binlog_format": "STATEMENT"}, "binlog_format to ROW or MIXED"),
    ],
)
def test_servers_that_are_not_fit_are_refused(change, fault):
    with pytest.raises(InvalidInput, match=fault):
        adopting._check_server({**SAFE, **change}, TARGET)


def test_servers_that_are_fit_are_told_apart():
    assert adopting._check_server(SAFE, TARGET) == "mariadb"
    assert adopting._check_server({**SAFE, "version": "8.4.3"}, TARGET) == "mysql"
    assert adopting._check_server({**SAFE, "version": "5.5.5-10.11.4-MariaDB-log"}, TARGET) == "mariadb"


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, None),
        ({"innodb_flush_log_at_trx_commit": "2"}, "innodb_flush_log_at_trx_commit=2"),
        ({"sync_binlog": "0"}, "sync_binlog=0"),
        ({"sync_binlog": "0", "log_bin": "OFF"}, None),
        ({"replicas": "1"}, "doesn't wait for its replicas"),
        ({"replicas": "1", "Rpl_semi_sync_master_status": "ON"}, None),
        ({"replicas": "1", "group_replication_group_name": "x"}, None),
        ({"wsrep_on": "ON", "replicas": "1"}, "node of a Galera cluster"),
        ({"innodb_doublewrite": "OFF"}, "innodb_doublewrite off"),
        ({"max_allowed_packet": "16777216"}, "max_allowed_packet=16777216"),
    ],
)
def test_each_risk_is_warned_about(change, warning):
    found = list(adopting._risks({**SAFE, **change}, TARGET, is_durable=True))
    assert len(found) == (warning is not None)
    assert warning is None or warning in found[0]


@pytest.mark.parametrize(("cipher", "how"), [("", "not encrypted"), ("TLS_X", "only as long as nobody interferes")])
def test_a_server_that_does_not_prove_itself_is_warned_about(cipher, how):
    (found,) = adopting._risks({**SAFE, "tls": cipher}, UNSURE, is_durable=True)
    assert how in found
    assert found.endswith("add ssl_ca=FILE to the URL")
    near = Target.parse("mysql://me@localhost/jobs")
    assert not list(adopting._risks({**SAFE, "tls": cipher}, near, is_durable=True))


# MySQL's half has never been run: that the commands are those of its manual is checked on a program that notes them.

NOTES = """#!/bin/sh
echo "$@" >> {notes}
case "$*" in
    *--version*) echo "mysqld  Ver 8.4.3 for Linux on x86_64 (MySQL Community Server - GPL)";;
    *--init-file=*)
        for word; do case "$word" in --init-file=*) cat "${{word#*=}}" >> {notes}.sql; esac; done
        trap 'exit 0' TERM
        echo "[System] [MY-010931] mysqld: ready for connections."
        while :; do sleep 0.05; done;;
esac
"""


@pytest.fixture
def mysql(tmp_path):
    program = tmp_path / "bin" / "mysqld"
    program.parent.mkdir()
    program.write_text(NOTES.format(notes=tmp_path / "notes"))
    program.chmod(0o755)
    return programs.find_server(str(program.parent), strict=True)


def test_mysqls_data_are_made_as_its_manual_says(mysql, tmp_path):
    assert (mysql.variant, mysql.series) == ("mysql", "8.4")
    bootstrap.make_data(mysql, tmp_path / "home", ServerAccount(), "5ecret")
    version, initialise, accounts = (tmp_path / "notes").read_text().splitlines()
    assert version == "--no-defaults --version"
    assert initialise.startswith("--no-defaults --initialize-insecure ")
    assert "--skip-networking" in accounts
    assert "--mysqlx=OFF" in accounts
    statements = (tmp_path / "notes.sql").read_text().splitlines()
    assert statements[0] == "CREATE DATABASE balsam CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;"
    assert statements[1] == "CREATE USER balsam@'%' IDENTIFIED BY '5ecret';"
    assert statements[-1].startswith("ALTER USER root@localhost IDENTIFIED BY '5ecret-")
    assert statements[-1].endswith("ACCOUNT LOCK;")
    assert "5ecret" not in (tmp_path / "notes").read_text()


def test_options_that_only_one_of_the_two_knows(tmp_path):
    for variant, has, lacks in (("mariadb", "--log-warnings=1", "mysqlx"), ("mysql", "--mysqlx=OFF", "log-warnings")):
        program = Programs(server=tmp_path / "bin" / "mysqld", variant=variant, series="8.0")
        words = configuration.server_options(program, tmp_path, durable=True)
        assert has in words
        assert lacks not in " ".join(words)
        assert "--socket=" in words
    assert os.sep in str(program.basedir)
