"""A MariaDB server of a DB's own that other hosts use: over TLS, with the one certificate that clients trust."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

from balsam_core.admin.initialise import initialise

pytest.importorskip("MySQLdb")
pytestmark = pytest.mark.skipif(
    not shutil.which("mariadbd", path=os.environ.get("PATH", "") + ":/usr/sbin"), reason="no MariaDB server programs"
)


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


def test_a_second_host_uses_it_over_tls_and_trusts_no_other_certificate(hosts, tmp_path):
    alpha, beta = hosts
    path = initialise(tmp_path / "a db", "mysql").db.path

    alpha.balsam.good("dbserver", "--path", path)
    assert "balsam dbserver --host" in beta.balsam.refused("ls", "--db", path, code=6)
    alpha.balsam.good("dbserver", "--path", path, "--stop")

    alpha.balsam.good("dbserver", "--path", path, "--host", alpha.address)
    assert beta.good([sys.executable, "-c", STRANGER, path]).split() == ["True"] * 6
    assert "from-afar" in alpha.balsam.good("ls", "--db", path).out
    beta.balsam.good("backup", tmp_path / "saved", db=path)
    alpha.balsam.good("dbserver", "--path", path, "--stop")

    # Each server can do it, so there is no way around it.
    alpha.balsam.good("dbserver", "--path", path, "--host", alpha.address, "--no-tls")
    assert beta.good([sys.executable, "-c", STRANGER, path]).split() == ["True"] * 6
    alpha.balsam.good("dbserver", "--path", path, "--stop")
