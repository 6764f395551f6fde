"""PostgreSQL's and MariaDB's servers on one host, programs on another."""

from __future__ import annotations

import os
import time

import pytest
from backend_dbs import make_db
from exact import check, rows_by_api, writers

from balsam_core.dbdir import address
from balsam_core.dbdir.lease import EXPIRY, lease_file


@pytest.fixture
def db(run_directory, kind):
    with make_db(kind, run_directory / f"{kind} shared") as db:
        yield db


def test_programs_on_another_host_use_the_server(hosts, db, kind, tmp_path, amount, verdict):
    """Through TLS; a server that listens on its own host only is reported with the remedy."""
    alpha, beta = hosts
    number, count = amount((1, 10), (8, 200))
    try:
        alpha.balsam.good("dbserver", "--path", db.path)
        line = beta.balsam.refused("ls", "--db", db.path)
        assert "listens only on its own host, alpha, and this is another one" in line
        assert "balsam dbserver --host 0.0.0.0" in line
        beta.balsam.good("dbserver", "--stop", "--path", db.path)  # of a server elsewhere
        assert alpha.address in alpha.balsam.good("dbserver", "--path", db.path, "--host", alpha.address).out
        assert address.read(db.dir).details["tls"] == "on"
        beta.balsam.good("job", "--name", "from beta", "--command", "true", "--db", db.path)
        for host in hosts:
            assert "from beta" in host.balsam.good("ls", "--db", db.path).out
        with (
            writers(db.path, number, tmp_path, count=count, name="a", wrap=alpha.argv) as there,
            writers(db.path, number, tmp_path, count=count, name="b", wrap=beta.argv) as here,
        ):
            there.begin()
            here.begin()
            assert alpha.address in beta.balsam.good("dbserver", "--path", db.path).out, "one runs already"
            for clients in (there, here):
                clients.finish()
            journals = [*there.journals, *here.journals]
    finally:
        beta.balsam("dbserver", "--stop", "--path", db.path)
    assert address.read(db.dir) is None
    db.start()
    report = check(journals, rows_by_api(db.path))
    report.assert_exact()
    assert not report.errors
    verdict("S06", f"{kind}: clients on another host, through TLS", f"CLI and API work from there: {report}")


def test_host_lost_with_its_server(hosts, db, kind, amount, verdict):
    """Two servers would destroy the data, so another host takes over only when told so."""
    alpha, beta = hosts
    alpha.balsam.good("dbserver", "--path", db.path, "--host", alpha.address)
    alpha.balsam.good("job", "--name", "kept", "--command", "true", "--db", db.path)
    alpha.crash()
    if amount(True, False):  # don't wait until the lease has expired
        moment = time.time() - EXPIRY - 1
        os.utime(lease_file(db.dir), (moment, moment))
    try:
        line = beta.balsam.refused("dbserver", "--path", db.path)
        assert "--takeover" in line
        beta.balsam.good("dbserver", "--path", db.path, "--takeover")
        assert "kept" in beta.balsam.good("ls", "--db", db.path).out
    finally:
        beta.balsam("dbserver", "--stop", "--path", db.path)
    verdict("T12", f"{kind}: host lost with its server", "the other host asks for --takeover, then serves")
