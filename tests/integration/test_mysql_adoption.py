"""A DB on a MariaDB server that somebody else runs: ``balsam init --db-type mysql --url URL``."""

from __future__ import annotations

import datetime as dt
import ipaddress
import logging
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from balsam_program import here
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from db_servers import Missing

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.backends import registry
from balsam_core.dbdir import passwords
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BalsamError, Conflict, InvalidInput, Unavailable
from balsam_core.system.certificates import make_certificate
from balsam_core.testing.tools import wait_until

MySQLdb = pytest.importorskip("MySQLdb")


@pytest.fixture(scope="module")
def server(databases):
    try:
        return databases.server("mysql")
    except Missing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def database(server, databases):
    """The URL of a fresh empty database, without its password."""
    with databases.fresh("mysql") as url:
        yield f"mysql://balsam@127.0.0.1:{server.port}/{url.rpartition('/')[2].partition('?')[0]}"


@pytest.fixture
def password(server):
    return server.password


def test_it_works_without_a_server_of_its_own(tmp_path, database, password):
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    secret.write_text(f"{password}\n")
    path = tmp_path / "db"
    done = here.good("init", path, "--db-type", "mysql", "--url", database, "--password-file", secret)
    # The tests' server is as fast as it is careless.
    assert "innodb_flush_log_at_trx_commit=0: acknowledged writes of the last second can be lost" in done.err
    assert "innodb_doublewrite off" in done.err
    assert password not in (path / "balsam.toml").read_text() + done.out + done.err
    stored = path / "keys" / "mysql_password"
    assert (stored.read_text(), stat.S_IMODE(stored.stat().st_mode)) == (password, 0o600)
    assert not (path / "mysql").exists()
    with open_db(path) as db:
        db.jobs.add([Job(command="true", workflow="w") for _ in range(3)])
        assert db.jobs.count() == 3
    engine = registry.load("mysql").create_engine(DBDir.open(path), "writer")
    with engine.connect() as conn:
        assert conn.exec_driver_sql("SELECT @@idle_write_transaction_timeout").scalar() == 30
    engine.dispose()
    served = here("dbserver", db=path)
    assert "needs no dbserver" in served.err
    # Again, without a password: the stored one is used.
    here.good("init", path)
    assert stored.read_text() == password


def test_its_backup_becomes_a_db_with_a_server_of_its_own_and_the_other_way_round(tmp_path, database, password):
    adopted = initialise(tmp_path / "db", "mysql", {"url": database}, password=password).db
    with open_db(adopted.path) as db:
        db.jobs.add([Job(command="true", workflow="w", name="saved")])
    here.good("backup", tmp_path / "saved", db=adopted.path)
    here.good("restore", tmp_path / "saved", tmp_path / "own")
    assert (tmp_path / "own" / "mysql" / "data").is_dir()


def test_a_password_that_is_not_stored_comes_from_the_environment(tmp_path, database, password, monkeypatch):
    monkeypatch.setenv("BALSAM_DB_PASSWORD", password)
    path = tmp_path / "db"
    here.good("init", path, "--db-type", "mysql", "--url", database, "--option", "store_password=no")
    assert not (path / "keys" / "mysql_password").exists()
    here.good("ls", db=path)
    assert os.environ["BALSAM_DB_PASSWORD"] == password
    monkeypatch.delenv("BALSAM_DB_PASSWORD")
    passwords._passwords_in_memory.clear()  # this process was told
    assert "put it into the variable BALSAM_DB_PASSWORD" in here.refused("ls", db=path, code=6)


def test_a_wrong_password_leaves_nothing(tmp_path, database):
    with pytest.raises(Unavailable, match=r"refused balsam .*: check the user and the password"):
        initialise(tmp_path / "db", "mysql", {"url": database}, password="wrong")
    assert not (tmp_path / "db").exists()
    assert "BALSAM_DB_PASSWORD" not in os.environ


def test_a_database_of_another_db_is_refused(tmp_path, database, password):
    with open_db(initialise(tmp_path / "one", "mysql", {"url": database}, password=password).db.path) as db:
        db.jobs.add([Job(command="true", workflow="w")])  # an unused one would be taken over
    with pytest.raises(Conflict, match="belongs to another DB"):
        initialise(tmp_path / "two", "mysql", {"url": database}, password=password)
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda url: url.rpartition("/")[0] + "/missing_database", "must exist"),
        (lambda url: url.replace("balsam@", "balsam:secret@"), "password"),
        (lambda url: url.replace("balsam@", ""), "names no user"),
        (lambda url: url.replace("mysql://", "postgresql://"), "must be like mysql://"),
        (lambda url: url + "?ssl_kay=/x", "option 'ssl_kay' is unknown"),
        (lambda url: url + "?ssl_ca=/missing", "can't be read"),
        (lambda url: url + "?ssl_ca=relative", "full path"),
        (lambda url: url + "?ssl_mode=SOMETIMES", "ssl_mode must be one of"),
        (lambda url: url + "?ssl_mode=REQUIRED", "add ssl_ca=FILE"),
        # Nothing of the password is sent to a server that has no TLS.
        (lambda url: url + f"?ssl_ca={__file__}", "isn't the one that is trusted"),
        (lambda url: url + "?ssl_mode=VERIFY_IDENTITY", "isn't the one that is trusted"),
        (lambda url: url.replace("127.0.0.1", "127.0.0.1:x"), "can't be read"),
    ],
)
def test_a_url_that_can_not_work_says_why(tmp_path, database, password, change, fault):
    with pytest.raises(BalsamError, match=fault):
        initialise(tmp_path / "db", "mysql", {"url": change(database)}, password=password)
    assert not (tmp_path / "db").exists()


def test_options_of_the_other_kind_are_refused(tmp_path, database, password):
    with pytest.raises(InvalidInput, match="for a server that Balsam runs"):
        initialise(tmp_path / "db", "mysql", {"url": database, "bindir": "/usr/sbin"}, password=password)
    with pytest.raises(InvalidInput, match="give --url, too"):
        initialise(tmp_path / "db", "mysql", {"store_password": "no"})
    with pytest.raises(InvalidInput, match="must be yes or no"):
        initialise(tmp_path / "db", "mysql", {"url": database, "store_password": "maybe"}, password=password)


def test_relaxed_durability_is_not_warned_about(tmp_path, database, password, caplog):
    with caplog.at_level(logging.WARNING, "balsam_mysql"):
        initialise(tmp_path / "db", "mysql", {"url": database, "durability": "relaxed"}, password=password)
    assert "innodb_flush_log_at_trx_commit" not in caplog.text
    assert "innodb_doublewrite" in caplog.text


# ----------------------------------------------------------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory):
    """A server of a site's that wants TLS: one of ours, run without Balsam. Its port and its files."""
    place = tmp_path_factory.mktemp("tls")
    try:
        made = initialise(place / "db", "mysql").db
    except BalsamError as err:
        pytest.skip(str(err))
    _site_certificate(place / "site.pem", place / "site.key")
    make_certificate(place / "other.pem", place / "other.key")
    plan = registry.load("mysql").start_server(made, "127.0.0.1", _free_port())
    argv = [*plan.argv, f"--ssl-cert={place}/site.pem", f"--ssl-key={place}/site.key"]
    tied = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
    with subprocess.Popen([*tied, *argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: _answers(plan.port, place / "site.pem", made.path), "the server")
            yield plan.port, place, (made.path / "keys" / "mysql_password").read_text()
        finally:
            process.kill()


def _site_certificate(certificate, key):
    """Make one that names the server's host, as a site's does."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "site")])
    now = dt.datetime.now(dt.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    certificate.write_bytes(signed.public_bytes(pem))
    key.touch(mode=0o600)
    key.write_bytes(secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))


def _free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _answers(port, certificate, path):
    password = (Path(path) / "keys" / "mysql_password").read_text()
    try:
        found = MySQLdb.connect(
            host="127.0.0.1", port=port, user="balsam", password=password, ssl={"ca": str(certificate)}
        )
    except MySQLdb.OperationalError:
        return False
    found.close()
    return True


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ("ssl_ca={place}/site.pem", None),
        ("ssl_ca={place}/site.pem&ssl_mode=REQUIRED", None),
        ("ssl_ca={place}/other.pem&ssl_mode=REQUIRED", "isn't the one that is trusted"),
        ("ssl_ca={place}/other.pem", "isn't the one that is trusted"),
        ("ssl_ca={place}/other.pem&ssl_mode=VERIFY_CA", "isn't the one that is trusted"),
    ],
)
def test_tls_options_reach_the_driver(tmp_path, tls_server, options, fault):
    port, place, password = tls_server
    url = f"mysql://balsam@127.0.0.1:{port}/balsam?{options.format(place=place)}"
    init = registry.load("mysql").init_db
    (tmp_path / "keys").mkdir(mode=0o700)
    db = DBDir(path=tmp_path, db_type="mysql", id="0" * 32)
    if fault is None:
        assert init(db, {"url": url, "password": password})["url"] == url
    else:
        with pytest.raises(Unavailable, match=fault):
            init(db, {"url": url, "password": password})
        assert not (tmp_path / "keys" / "mysql_password").exists()
