"""A PostgreSQL server for other hosts: encrypted, pinned by its certificate, or open on the user's word."""

from __future__ import annotations

import json
import sys

import pytest
from namespaces import two_hosts

from balsam_core.admin.initialise import initialise
from balsam_core.errors import BackendError
from balsam_core.plugin import make_certificate
from balsam_core.testing.tools import wait_until

psycopg = pytest.importorskip("psycopg")
programs = pytest.importorskip("balsam_postgres.programs")
try:
    programs.find_server()
except BackendError as lacking:
    pytest.skip(str(lacking), allow_module_level=True)

LOGIN = """
import sys, psycopg
from pathlib import Path
host, port, keys, sslmode = sys.argv[1:]
password = Path(keys, "postgres_password").read_text().strip()
try:
    login = {"user": "balsam", "dbname": "balsam", "password": password, "sslmode": sslmode}
    with psycopg.connect(host=host, port=port, **login) as one:
        print(one.pgconn.ssl_in_use)
except psycopg.OperationalError as err:
    print(err)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    with two_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest.fixture(scope="module")
def db(tmp_path_factory):
    return initialise(tmp_path_factory.mktemp("postgres") / "db", "postgres").db


def login(host, db, sslmode):
    published = json.loads(db.address_file.read_text())
    return host.good([sys.executable, "-c", LOGIN, published["host"], published["port"], db.keys, sslmode]).strip()


def serving(host, db, *words):
    return host.balsam.good("dbserver", "--path", db.path, *words)


def test_another_host_is_served_encrypted(hosts, db):
    alpha, beta = hosts
    serving(alpha, db, "--host", alpha.address)
    try:
        command = ["run", "--db", db.path, "--", "true"]
        for host in (alpha, beta):
            host.balsam.good(*command)
        assert beta.balsam.good("-o", "ids", "ls", "--db", db.path).out.split() == ["1", "2"]
        assert login(beta, db, "require") == "True"
        assert "no pg_hba.conf entry" in login(beta, db, "disable")
        certificate = db.keys / "postgres.crt"
        before = certificate.read_bytes()
        # A server with another certificate is another server.
        make_certificate(other := db.path.parent / "other.crt", db.path.parent / "other.key")
        certificate.write_bytes(other.read_bytes())
        try:
            assert "its certificate is not the expected one" in beta.balsam.refused(*command, code=6)
        finally:
            certificate.write_bytes(before)
        beta.balsam.good(*command)
        # Whoever adopts a server can pin it as well.
        secret = db.keys / "postgres_password"
        url = f"postgresql://balsam@{alpha.address}:{json.loads(db.address_file.read_text())['port']}/balsam"
        for root, fault in (
            (certificate, "belongs to another DB directory"),
            (other, "certificate is not the expected"),
        ):
            words = ["--url", f"{url}?sslmode=verify-ca&sslrootcert={root}", "--password-file", secret]
            assert fault in beta.balsam("init", db.path.parent / "adopted", "--db-type", "postgres", *words).err
    finally:
        serving(alpha, db, "--stop")


def test_without_encryption_on_the_users_word_only(hosts, db):
    alpha, beta = hosts
    done = serving(alpha, db, "--host", "0.0.0.0", "--no-tls")
    try:
        assert "not encrypted" in done.err
        beta.balsam.good("ls", "--db", db.path)
        assert login(beta, db, "disable") == "False"
        assert "does not support SSL" in login(beta, db, "require")
    finally:
        serving(beta, db, "--stop")
    wait_until(lambda: "running" not in db.address_file.read_text())


def test_on_the_loopback_another_host_is_told_so(hosts, db):
    alpha, beta = hosts
    serving(alpha, db)
    try:
        assert "--host" in beta.balsam.refused("ls", "--db", db.path, code=6)
    finally:
        serving(alpha, db, "--stop")


def test_a_machine_whose_shared_memory_files_can_not_be_used(hosts, tmp_path):
    alpha, _ = hosts
    path = tmp_path / "db"
    alpha.good(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", "/dev/shm"])
    try:
        alpha.balsam.good("init", path, "--db-type", "postgres")
        alpha.balsam.good("dbserver", "--path", path)
        try:
            alpha.balsam.good("run", "--db", path, "--", "true")
        finally:
            alpha.balsam.good("dbserver", "--path", path, "--stop")
        # What the server says of its end reaches the user.
        (path / "postgres" / "site.conf").write_text("dynamic_shared_memory_type = posix\n")
        for command in (["dbserver", "--path", path], ["init", path]):
            done = alpha.balsam.refused(*command, code=6)
            assert "FATAL:  could not open shared memory segment" in done
    finally:
        alpha.good(["umount", "/dev/shm"])
