"""A MariaDB server of a DB's own that other hosts use: over TLS, with the one certificate that clients trust."""

from __future__ import annotations

import os
import shutil
import sys

import pytest
from namespaces import two_hosts

from balsam_core.admin.initialise import initialise

pytest.importorskip("MySQLdb")
pytestmark = pytest.mark.skipif(
    not shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin"), reason="no MariaDB server programs"
)

BALSAM = [sys.executable, "-W", "error", "-m", "balsam_core.cli"]

# Runs on the second host, all in one process: starting a dozen takes long.
STRANGER = """
import sys, shutil, msgspec
from pathlib import Path
import MySQLdb
from balsam_core import Job, open_db
from balsam_core.dbdir import address
from balsam_core.backends import registry
from balsam_core.system.certificates import make_certificate
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import Unavailable

db = DBDir.open(sys.argv[1])
at = address.read(db)
keys = db.keys
certificate, key, pins = (keys / name for name in ("mysql_certificate.pem", "mysql_key.pem", "mysql_client.cnf"))

def cipher(to=at):
    engine = registry.load("mysql").create_engine(db, "reader")
    try:
        with address.override(db, to), engine.connect() as conn:
            return conn.exec_driver_sql("SHOW SESSION STATUS LIKE 'Ssl_cipher'").one()[1]
    finally:
        engine.dispose()

def fault(to=at):
    try:
        return cipher(to)
    except Exception as err:
        return str(err)

with open_db(db.path) as opened:
    opened.jobs.add([Job(command="true", workflow="w", name="from-afar")])
print(cipher().startswith("TLS_"))
# Whatever the address says.
print(cipher(msgspec.structs.replace(at, details={"tls": "off"})).startswith("TLS_"))
# Somebody else's server in its place: here, the files name another certificate.
saved = certificate.read_bytes(), key.read_bytes(), pins.read_text()
certificate.unlink()
make_certificate(certificate, key)
pins.write_text(saved[2].replace("ssl-fp=", "ssl-fp=11"))
print("isn't the one that is trusted" in fault())
certificate.write_bytes(saved[0])
key.write_bytes(saved[1])
pins.write_text(saved[2].replace("ssl-fp=", "ssl-fp=00"))
print("isn't the one that is trusted" in fault())
pins.write_text("")
print("mysql_client.cnf is damaged" in fault())
pins.write_text(saved[2])
print(cipher().startswith("TLS_"))
"""


@pytest.fixture
def hosts(tmp_path):
    with two_hosts(tmp_path) as hosts:
        yield hosts


def test_a_second_host_uses_it_over_tls_and_trusts_no_other_certificate(hosts, tmp_path):
    alpha, beta = hosts
    path = initialise(tmp_path / "a db", "mysql").db.path
    here = {**os.environ, "BALSAM_DB_PATH": str(path)}

    alpha.good([*BALSAM, "dbserver", "--path", path])
    refused = beta.run([*BALSAM, "ls", "--db", path])
    assert (refused.returncode, refused.stderr.count("\n")) == (6, 1)
    assert "balsam dbserver --host" in refused.stderr
    alpha.good([*BALSAM, "dbserver", "--path", path, "--stop"])

    alpha.good([*BALSAM, "dbserver", "--path", path, "--host", alpha.address])
    assert beta.good([sys.executable, "-c", STRANGER, path]).split() == ["True"] * 6
    assert "from-afar" in alpha.good([*BALSAM, "ls", "--db", path])
    beta.good([*BALSAM, "backup", tmp_path / "saved"], env=here)
    alpha.good([*BALSAM, "dbserver", "--path", path, "--stop"])

    # Each server can do it, so there is no way around it.
    alpha.good([*BALSAM, "dbserver", "--path", path, "--host", alpha.address, "--no-tls"])
    assert beta.good([sys.executable, "-c", STRANGER, path]).split() == ["True"] * 6
    alpha.good([*BALSAM, "dbserver", "--path", path, "--stop"])
