"""PostgreSQL's and MariaDB's servers on one host, programs on another."""

from __future__ import annotations

import os
import time

import pytest
from backend_dbs import BALSAM, make_db, one_line
from exact import check, rows_by_api, writers
from namespaces import two_hosts

from balsam_core.dbdir import address
from balsam_core.watchdog.lease import EXPIRY, lease_file


@pytest.fixture
def hosts(tmp_path):
    with two_hosts(tmp_path) as hosts:
        yield hosts


@pytest.fixture
def db(guarded, kind):
    with make_db(kind, guarded / f"{kind} shared") as db:
        yield db


def test_programs_on_another_host_use_the_server(hosts, db, kind, tmp_path, amount, verdict):
    """Through TLS; a server that listens on its own host only is reported with the remedy."""
    alpha, beta = hosts
    number, count = amount((1, 10), (8, 200))

    def balsam(host, *words):
        return host.good([*BALSAM, *words])

    try:
        balsam(alpha, "dbserver", "--path", db.path)
        line = one_line(beta.run([*BALSAM, "ls", "--db", db.path]))
        assert "listens only on its own host, alpha, and this is another one" in line
        assert "balsam dbserver --host 0.0.0.0" in line
        balsam(beta, "dbserver", "--stop", "--path", db.path)  # of a server elsewhere
        assert alpha.address in balsam(alpha, "dbserver", "--path", db.path, "--host", alpha.address)
        assert address.read(db.dir).details["tls"] == "on"
        balsam(beta, "job", "--name", "from beta", "--command", "true", "--db", db.path)
        for host in hosts:
            assert "from beta" in balsam(host, "ls", "--db", db.path)
        with (
            writers(db.path, number, tmp_path, count=count, name="a", wrap=alpha.argv) as there,
            writers(db.path, number, tmp_path, count=count, name="b", wrap=beta.argv) as here,
        ):
            there.begin()
            here.begin()
            assert alpha.address in balsam(beta, "dbserver", "--path", db.path), "one runs already"
            for clients in (there, here):
                clients.finish()
            journals = [*there.journals, *here.journals]
    finally:
        beta.run([*BALSAM, "dbserver", "--stop", "--path", db.path])
    assert address.read(db.dir) is None
    db.start()
    report = check(journals, rows_by_api(db.path))
    report.assert_exact()
    assert not report.errors
    verdict("S06", f"{kind}: clients on another host, through TLS", f"CLI and API work from there: {report}")


def test_host_lost_with_its_server(hosts, db, kind, amount, verdict):
    """Two servers would destroy the data, so another host takes over only when told so."""
    alpha, beta = hosts
    alpha.good([*BALSAM, "dbserver", "--path", db.path, "--host", alpha.address])
    alpha.good([*BALSAM, "job", "--name", "kept", "--command", "true", "--db", db.path])
    alpha.crash()
    if amount(True, False):  # don't wait until the lease has expired
        moment = time.time() - EXPIRY - 1
        os.utime(lease_file(db.dir), (moment, moment))
    try:
        line = one_line(beta.run([*BALSAM, "dbserver", "--path", db.path]))
        assert "--takeover" in line
        beta.good([*BALSAM, "dbserver", "--path", db.path, "--takeover"])
        assert "kept" in beta.good([*BALSAM, "ls", "--db", db.path])
    finally:
        beta.run([*BALSAM, "dbserver", "--stop", "--path", db.path])
    verdict("T12", f"{kind}: host lost with its server", "the other host asks for --takeover, then serves")
