"""``balsam dbserver --host`` with the names and addresses of the loopback, on each backend's own server."""

from __future__ import annotations

import json
import socket

import pytest
from balsam_program import here
from db_servers import KINDS, skip_kind

from balsam_core.admin.initialise import initialise
from balsam_core.errors import BackendError
from balsam_core.testing.tools import wait_until


def _has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture(scope="module", params=KINDS)
def db(request, tmp_path_factory):
    try:
        return initialise(tmp_path_factory.mktemp(request.param) / "db", request.param).db
    except BackendError as lacking:
        skip_kind(request.param, lacking)


@pytest.mark.parametrize(("host", "published"), [("localhost", "127.0.0.1"), ("[::1]", "[::1]"), ("::1", "[::1]")])
def test_a_server_listens_on_the_loopback_by_any_name(db, tmp_path, host, published):
    if ":" in host and not _has_ipv6():
        pytest.skip("this machine has no ::1")
    done = here.good("-o", "json", "dbserver", "--path", db.path, "--host", host)
    try:
        port = json.loads(done.out)["port"]
        assert json.loads(done.out)["address"] == f"{published}:{port}"
        here.good("run", "--", "true", db=db.path)
        here.good("backup", tmp_path / "saved", db=db.path)
        again = here.good("dbserver", "--path", db.path, "--host", host)
        assert f"already running at {published}:{port}\n" in again.out
        assert "other options" not in again.err
    finally:
        here.good("dbserver", "--path", db.path, "--stop")
    wait_until(lambda: "running" not in db.address_file.read_text())
