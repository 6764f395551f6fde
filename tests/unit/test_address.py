from __future__ import annotations

import contextlib
import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from balsam_core.dbdir import address
from balsam_core.dbdir.address import Address
from balsam_core.dbdir.publication import Publication, refuse_while_served
from balsam_core.errors import AddressError, BackendError, BalsamError, Conflict, Corrupt, DBDirError, SchemaMismatch

RUNNING = Address(
    state="running",
    host="login1.example.org",
    port=4711,
    protocol="balsam/1",
    node="login1",
    boot_id="e0c7d5a4-0000-4000-8000-000000000000",
    pid=99,
    start_time=1732406400.25,
    generation=3,
    details={"database": "balsam"},
)


def test_what_is_written_is_read(db):
    address.write(db, RUNNING)
    assert address.read(db) == RUNNING


def test_withdrawn_means_none(db):
    address.write(db, RUNNING)
    address.withdraw(db)
    assert address.read(db) is None
    assert json.loads(db.address_file.read_bytes())["state"] == "stopped"


def test_file_is_private_json(db):
    address.write(db, RUNNING)
    assert db.address_file.stat().st_mode & 0o777 == 0o600
    assert json.loads(db.address_file.read_bytes())["port"] == 4711


def test_generation_is_called_epoch_in_the_file(db):
    address.write(db, RUNNING)
    content = json.loads(db.address_file.read_bytes())
    assert content["epoch"] == RUNNING.generation
    assert "generation" not in content


@pytest.mark.parametrize("content", ["{}", '{"epoch": 4}', '{"state": "", "epoch": 4}'])
def test_a_file_without_a_state_does_not_say_that_no_server_runs(db, content):
    db.address_file.write_text(content)
    with pytest.raises(AddressError):
        address.read(db)


def test_unknown_members_are_ignored(db):
    db.address_file.write_text('{"state": "stopped", "colour": [1, {"a": null}]}')
    assert address.read(db) is None


def test_missing_file_names_the_remedy(db):
    with pytest.raises(AddressError, match=r"is missing.*balsam init"):
        address.read(db)


def test_newer_format_is_a_schema_mismatch(db):
    db.address_file.write_text('{"format": 2, "state": "running"}')
    with pytest.raises(SchemaMismatch, match="upgrade"):
        address.read(db)


def running(**members):
    return json.dumps({"state": "running", "host": "h", "port": 1, "pid": 1} | members).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"running"',
        b'{"state": "running"',
        b'{"state": "flying"}',
        b'{"state": "running"}',
        b'{"state": "stopped", "format": 0}',
        b'{"x": ' + b"[" * 50_000,
        b'{"state": "stopped"}' + b" " * 70_000,
        b'{"state": "stopped"} trailing',
        running(host=""),
        running(host="ipc:///tmp/x"),
        running(host="a/../b"),
        running(host="a\nb"),
        running(host="x" * 300),
        running(host=["h"]),
        running(port=0),
        running(port=65536),
        running(port=-1),
        running(port="1"),
        running(port=1.5),
        running(port=10**30),
        running(pid=0),
        running(epoch=-1),
        running(start_time="now"),
        running(details={"a": 1}),
        running().replace(b'"pid": 1', b'"pid": NaN'),
    ],
)
def test_garbage_is_one_line_and_stays(db, content):
    db.address_file.write_bytes(content)
    with pytest.raises(AddressError) as caught:
        address.read(db)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(db.address_file) in str(caught.value)
    assert db.address_file.read_bytes() == content


@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "loop"])
def test_what_is_no_regular_file_is_refused(db, tmp_path, kind):
    if kind == "link":
        (tmp_path / "real").write_text('{"state": "stopped"}')
        db.address_file.symlink_to(tmp_path / "real")
    elif kind == "pipe":
        os.mkfifo(db.address_file)
    elif kind == "directory":
        db.address_file.mkdir()
    else:
        db.address_file.symlink_to(db.address_file)
    with pytest.raises(AddressError):
        address.read(db)


def test_an_impossible_address_is_not_written(db):
    address.withdraw(db)
    with pytest.raises(AddressError):
        address.write(db, Address(state="running", host="h", port=0, pid=1))
    assert address.read(db) is None


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: (
                st.lists(inner) | st.dictionaries(st.sampled_from(Address.__struct_encode_fields__) | st.text(), inner)
            ),
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_any_bytes_give_an_address_or_an_address_error(db, content):
    db.address_file.write_bytes(content)
    found = None
    with contextlib.suppress(AddressError, SchemaMismatch):
        found = address.read(db)
    assert found is None or found.state == "running"


def test_the_number_of_the_last_publication_survives_withdrawals(db):
    assert address.last_generation(db) == 0
    address.withdraw(db)
    assert address.last_generation(db) == 0
    address.write(db, RUNNING)
    for _ in range(2):
        address.withdraw(db)
        assert address.last_generation(db) == RUNNING.generation
    db.address_file.write_text("garbage")
    assert address.last_generation(db) == 0


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (BackendError, BackendError),
        (SchemaMismatch, SchemaMismatch),
        (DBDirError, DBDirError),
        (Corrupt, Corrupt),
        (Conflict, BackendError),
        (BalsamError, BackendError),
    ],
)
def test_a_server_that_was_given_up_is_an_error(db, kind, error):
    address.write(db, RUNNING)
    inode = db.path.stat().st_ino
    address.publish_failure(db, kind, "it failed 3 times", directory=inode, log="dbserver_1.log")
    with pytest.raises(error) as caught:
        address.read(db)
    assert type(caught.value) is error
    assert str(caught.value) == (
        f"the server of {db.path} was given up: it failed 3 times; see {db.log}/dbserver_1.log, then start it again "
        f"with balsam dbserver --path={db.path}"
    )
    assert address.last_generation(db) == RUNNING.generation
    with pytest.raises(error):
        Publication(db).await_current(float("inf"))
    with pytest.raises(error):
        refuse_while_served(db)
    address.withdraw(db)
    assert address.read(db) is None


def test_a_copy_has_no_server_that_was_given_up(db):
    address.publish_failure(db, BackendError, "no", directory=db.path.stat().st_ino + 1, log="")
    assert address.read(db) is None
    assert address.failure(db) is None


@pytest.mark.parametrize("log", ["", "../../etc/passwd", "a\nb", "x" * 1000, "/etc/passwd"])
def test_a_note_that_somebody_else_wrote_stays_one_printable_line(db, log):
    address.publish_failure(db, BackendError, "\x1b[31mred\n" + "x" * 10_000, directory=0, log=log)
    said = str(address.failure(db))
    assert said.isprintable()
    assert len(said) < 1000 + 3 * len(str(db.path))
    assert f"; see {db.log}, then" in said
