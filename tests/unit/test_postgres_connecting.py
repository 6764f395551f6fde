"""What the PostgreSQL plugin tells libpq, and what it reads from URLs, passwords and refusals."""

from __future__ import annotations

import base64
import contextlib
import os
import resource
import socket
import socketserver
import struct
import threading

import pytest

from balsam_core.dbdir.address import Address
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import BackendError, Corrupt, InvalidInput, Unavailable

psycopg = pytest.importorskip("psycopg")
url_module = pytest.importorskip("balsam_postgres.url")
from balsam_postgres import bootstrap, connecting, errors, libpq  # noqa: E402


def test_the_verifier_is_that_of_rfc_7677():
    salt = "W22ZaJ0SNY7soEsUEjb6gQ=="
    assert bootstrap.scram_verifier("pencil", base64.b64decode(salt)) == (
        f"SCRAM-SHA-256$4096:{salt}$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://user@host/db", "has the form"),
        ("postgresql://host/db", "doesn't name the user"),
        ("postgresql://user@/db", "doesn't name the host"),
        ("postgresql://user@host", "doesn't name the database"),
        ("postgresql://user@[host/db", "not well formed"),
        ("postgresql://user@host/db?colour=red", "query parameter"),
        ("postgresql://user:secret@host/db", "must not stand in the URL"),
        ("postgresql://user@host/db?password=secret", "must not stand in the URL"),
        ("postgresql://user@host/db?sslpassword=secret", "must not stand in the URL"),
        ("postgresql://user@host/db?service=other", "has the parameter service"),
        ("postgresql://user@host/db?replication=true", "has the parameter replication"),
        ("postgresql://user@host,other/db?target_session_attrs=any", "permits a standby"),
        ("postgresql://user@host/db?sslrootcert=ca.pem", "write the path in full"),
    ],
)
def test_a_wrong_url_is_refused_without_its_secrets(url, why):
    with pytest.raises(InvalidInput, match=why) as caught:
        url_module.check_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://user@host:5433/db?sslmode=verify-full&sslrootcert=/etc/ca.pem",
        "postgres://user@[::1]/db?sslrootcert=system&sslmode=verify-full",
        "postgresql://user@one,two:5433/db?target_session_attrs=read-write",
        "postgresql://user@%2Fvar%2Frun%2Fpostgresql/db",
    ],
)
def test_a_good_url_passes(url):
    url_module.check_url(url)
    parameters = connecting.adopted_parameters({"url": url}, psycopg.pq.version())
    assert parameters["dbname"] == "db"
    assert parameters["hostaddr"] == ""
    assert parameters["target_session_attrs"] == "read-write"


def test_a_server_of_ours_is_pinned_and_gets_no_password_in_clear(tmp_path):
    db = DBDir(path=tmp_path, db_type="postgres", id="0" * 32)
    address = Address(state="running", host="host", port=5, protocol="postgresql", details={"tls": "on"})
    found = connecting.own_parameters(db, address, 180000)
    assert (found["sslmode"], found["sslrootcert"]) == ("verify-ca", str(tmp_path / "keys" / "postgres.crt"))
    assert found["require_auth"] == "scram-sha-256"
    assert "require_auth" not in connecting.own_parameters(db, address, 150000)
    here = Address(state="running", host="127.0.0.1", port=5, protocol="postgresql", details={"tls": "on"})
    assert connecting.own_parameters(db, here, 160000)["sslmode"] == "disable"
    assert connecting.own_parameters(db, here, 150000)["sslmode"] == "verify-ca"
    assert "password" not in found
    plain = Address(state="running", host="127.0.0.1", port=5, protocol="postgresql", details={"tls": "off"})
    assert connecting.own_parameters(db, plain, 160000)["require_auth"] == "scram-sha-256"
    with pytest.raises(BackendError, match=r"would tell the password .* pip install 'psycopg\[binary\]'"):
        connecting.own_parameters(db, plain, 150018)
    careful = {"url": "postgresql://user@host/db?require_auth=scram-sha-256"}
    with pytest.raises(BackendError, match="the URL's require_auth needs PostgreSQL's library 16"):
        connecting.adopted_parameters(careful, 150018)
    with pytest.raises(Unavailable, match="speaks balsam/1, not postgresql"):
        connecting.connect(db, Address(state="running", host="host", port=5, protocol="balsam/1"))


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  password authentication failed for user "x"',
        'FATAL:  role "x" does not exist',
        'FATAL:  database "x" does not exist',
        "fe_sendauth: no password supplied",
        'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "x", database "y", no encryption',
        "server does not support SSL, but SSL was required",
        "SSL error: certificate verify failed",
        'server certificate for "a" does not match host name "b"',
        'root certificate file "/x" does not exist',
        'authentication method requirement "scram-sha-256" failed: server requested a cleartext password',
    ],
)
def test_what_cannot_succeed_is_known(said):
    assert " ".join(said.split()) in str(errors.permanent_error(psycopg.OperationalError(said), "the server"))


@contextlib.contextmanager
def refusing_server(code, text):
    """Give the port of a server that refuses everybody with an SQLSTATE and a text, as PostgreSQL does."""

    class Refuse(socketserver.BaseRequestHandler):
        def handle(self):
            while True:
                (length,) = struct.unpack("!I", self.request.recv(4, socket.MSG_WAITALL))
                if self.request.recv(length - 4, socket.MSG_WAITALL)[:2] != struct.pack("!H", 1234):
                    break  # it has not only asked for TLS
                self.request.sendall(b"N")
            fields = "".join(
                f"{kind}{value}\0" for kind, value in zip("SVCM", ["FATAL", "FATAL", code, text], strict=True)
            )
            body = fields.encode() + b"\0"
            self.request.sendall(b"E" + struct.pack("!I", len(body) + 4) + body)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.skipif(psycopg.pq.version() < 180000, reason="an older libpq doesn't tell the code")
@pytest.mark.parametrize(
    ("code", "text", "meaning"),
    [
        ("28P01", "Passwort-Authentifizierung für Benutzer »me« fehlgeschlagen", "the password is wrong"),
        ("28000", "Rolle »me« existiert nicht", "doesn't let this host, user or database in"),
        ("3D000", "Datenbank »jobs« existiert nicht", "there is no such database"),
        ("42704", "unbekannter Konfigurationsparameter »x«", "refuses what it is told (code 42704)"),
        ("57P03", "das Datenbanksystem startet", None),
        ("53300", "tut mir leid, schon zu viele Verbindungen", None),
    ],
)
def test_a_refusal_in_another_language_is_known_by_its_code(tmp_path, code, text, meaning):
    with refusing_server(code, text) as port:
        db = DBDir(
            path=tmp_path, db_type="postgres", id="0" * 32, settings={"url": f"postgresql://me@127.0.0.1:{port}/jobs"}
        )
        with pytest.raises(Unavailable if meaning else psycopg.OperationalError) as caught:
            connecting.connect_adopted(db, password="secret")
    assert text in str(caught.value)
    assert (meaning or "") in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        "Connection refused",
        "FATAL:  the database system is starting up",
        "FATAL:  sorry, too many clients already",
        "server closed the connection unexpectedly",
        "connection timeout expired",
    ],
)
def test_what_may_succeed_is_repeated(said):
    assert errors.permanent_error(psycopg.OperationalError(said), "the server") is None


def test_the_servers_troubles_are_told_apart():
    assert isinstance(errors.translate(psycopg.errors.DiskFull("x")), Unavailable)
    assert isinstance(errors.translate(psycopg.errors.DataCorrupted("x")), Corrupt)
    assert isinstance(errors.translate(psycopg.errors.NumericValueOutOfRange("x")), InvalidInput)
    assert errors.translate(psycopg.errors.UniqueViolation("x")) is None
    assert [
        errors.is_retryable(one("x"))
        for one in (
            psycopg.errors.SerializationFailure,
            psycopg.errors.DeadlockDetected,
            psycopg.errors.LockNotAvailable,
            psycopg.errors.DiskFull,
        )
    ] == [True, True, True, False]
    assert errors.is_lost(psycopg.errors.AdminShutdown("x"))
    assert errors.is_lost(psycopg.errors.IdleInTransactionSessionTimeout("x"))
    assert not errors.is_lost(psycopg.errors.QueryCanceled("x"))


def test_a_refusals_code_is_asked_for_with_more_open_files_than_select_takes(monkeypatch):
    monkeypatch.setattr(libpq, "_SECONDS", 0.3)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2000:
        pytest.skip("the limit of open files is too low here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (2000, hard))
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = str(silent.getsockname()[1])
            assert libpq.refusal_code({"host": "127.0.0.1", "port": port, "user": "a", "dbname": "a"}) == ""
    finally:
        for descriptor in many:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_that_did_not_answer_is_not_asked_why_it_refuses(tmp_path):
    """It resets each connection, and counts them."""
    asked = []

    class Resetting(socketserver.BaseRequestHandler):
        def handle(self):
            asked.append(1)
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Resetting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        settings = {"url": f"postgresql://a@127.0.0.1:{port}/a?sslmode=disable"}
        db = DBDir(path=tmp_path, db_type="postgres", id="0" * 32, settings=settings)
        with pytest.raises(psycopg.OperationalError, match=r"reset by peer|closed the connection|Broken pipe"):
            connecting.connect_adopted(db, password="secret")
        server.shutdown()
    assert len(asked) == 1
