"""Files that name dead processes, foreign processes or other files: nobody is signalled, nothing else is changed."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time

import msgspec
import pytest
from amounts import at_most
from balsam_program import here

from balsam_core import Job, open_db
from balsam_core.dbdir import address
from balsam_core.dbdir.lease import EXPIRY, encode_lease, lease_file
from balsam_core.errors import Unavailable
from balsam_core.system import processes

# Notes each signal that it gets, and can't be ended by any but SIGKILL.
FOREIGN = """
import os, signal, sys
notes = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, lambda number, _: os.write(notes, b"%d " % number))
print("ready", flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def foreign_process(tmp_path):
    """A process that has nothing to do with us, and the file in which it notes its signals."""
    notes = tmp_path / "signals"
    with subprocess.Popen([sys.executable, "-c", FOREIGN, str(notes)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process, notes
        process.kill()


def leave(served, lease, published, *, age=0.0, began=None, **members):
    """Put a lease and an address there, as if from the past.

    Args:
        served: Where.
        lease: A real one, to be changed by ``members``.
        published: A real address, to be changed likewise.
        age: Seconds since the last heartbeat.
        began: When the published process began; None for the truth about the dead one.
        members: Of the lease; the address names the same server.
    """
    changes: dict[str, object] = {name: members[name] for name in ("boot_id", "node") if name in members}
    changes["pid"] = members.get("child_pid", published.pid)
    changes["start_time"] = published.start_time if began is None else began
    lease_file(served.dir).write_bytes(encode_lease(msgspec.structs.replace(lease, **members)))
    served.dir.address_file.write_bytes(msgspec.json.encode(msgspec.structs.replace(published, **changes)))
    moment = time.time() - age
    os.utime(lease_file(served.dir), (moment, moment))


def test_reboot_leaves_files_of_another_boot(served, foreign_process, amount, verdict):
    """Files from before a reboot name a foreign process: it isn't signalled, the next start works (T09)."""
    process, notes = foreign_process
    with open_db(served.path) as db:
        db.jobs.add(Job(name="before", command="true"))
    lease, published = served.kill_all()
    # The machine came back, and the numbers belong to another process now, which even started at the same moment.
    start = processes.start_of(process.pid)
    age = amount(EXPIRY + 1, 0.0)
    leave(
        served,
        lease,
        published,
        age=age,
        boot_id="00000000-1111-2222-3333-444444444444",
        pid=process.pid,
        start=start,
        child_pid=process.pid,
        child_start=start,
    )
    began = time.monotonic()
    line = here.refused("ls", db=served.path, code=Unavailable.exit_code)
    refused = time.monotonic() - began
    assert "ran before this machine was restarted" in line
    assert "start it with balsam dbserver --path=" in line
    began = time.monotonic()
    done = served.command()
    started = time.monotonic() - began
    assert done.code == 0, done
    with open_db(served.path) as db:
        db.jobs.add(Job(name="after", command="true"))
        assert sorted(name for (name,) in db.jobs.rows("name")) == ["after", "before"]
    assert process.poll() is None
    assert notes.read_text() == ""
    assert refused <= at_most(5)
    assert started <= at_most(5 if age else EXPIRY + 5)
    verdict(
        "T09",
        "reboot: address and lease of another boot",
        f"client: clear error after {refused:.1f} s; dbserver started the first time in {started:.1f} s (last heartbeat"
        f" {age:.0f} s before); nobody signalled",
    )


def test_foreign_process_with_a_reused_number_is_never_signalled(served, foreign_process, amount, verdict):
    """Lease and address name a foreign process: no command signals it, and each start works (T10)."""
    process, notes = foreign_process
    lease, published = served.kill_all()
    other = processes.start_of(process.pid)
    pids = {"pid": process.pid, "child_pid": process.pid}
    cases = [
        {**pids, "start": other - 5, "child_start": other - 5},
        {**pids, "start": other, "child_start": other, "boot_id": "another"},
        {**pids, "start": other - 5, "child_start": other - 5, "stop": [(9, 1.0)]},
        {**pids, "start": 0.0, "child_start": 0.0, "began": 0.0},
        {**pids, "start": other, "child_start": other, "pid_namespace": 1},
        {**pids, "pid": 1, "start": other, "child_start": other - 1},
        {"pid": 2**22 + 7, "start": 1.0, "child_pid": process.pid, "child_start": other - 1},
    ]
    cases = cases[: amount(2, None)]
    for members in cases:
        for words in (["--status"], ["--stop"], ["--reset"], []):
            leave(served, lease, published, age=EXPIRY + 1, **members)
            done = here("dbserver", *words, "--path", served.path)
            assert done.code == 0, done
        with open_db(served.path) as db:
            db.jobs.add(Job(name="after", command="true"))
        here.good("dbserver", "--stop", "--path", served.path)
        assert process.poll() is None
    # The address alone, without a lease.
    leave(served, lease, published, child_pid=process.pid, began=published.start_time - 1)
    lease_file(served.dir).unlink()
    here.good("dbserver", "--status", "--path", served.path)
    here.good("dbserver", "--reset", "--path", served.path)
    assert process.poll() is None
    assert notes.read_text() == ""
    assert address.read(served.dir) is None
    verdict(
        "T10",
        "process id reused by a foreign process",
        f"{len(cases)} forgeries x start, --stop, --reset, --status: no signal reached it, each start worked",
    )


PLANTED = {
    "dbwriter_address": "replaced",
    "dbserver.stop": "",  # nobody writes it here
    "dbserver.lease": "is a symbolic link: remove it",
    ".dbserver.lock": "",  # does without
    "keys": "is a symbolic link, so keys would lie elsewhere: remove it",
    "keys/server.key": "replaced",
    "keys/client.key": "replaced",
}


def test_planted_links_are_refused_or_replaced(make_served, tmp_path, amount, verdict):
    """Symbolic links are planted in place of our files: they are refused or replaced, their targets untouched (T37)."""
    names = list(PLANTED)
    kinds = amount([names[:1] + names[3:4] + names[6:], [names[2], names[4]]], [[name] for name in PLANTED])
    for number, planted in enumerate(kinds):
        for exists in amount([number == 0], [True, False]):
            outside = tmp_path / f"outside {number} {exists}"
            outside.mkdir()
            served = make_served(f"db {number} {exists}")
            links = []
            for name in planted:
                target, link = outside / name.replace("/", "-"), served.path / name
                if exists or name == "keys":
                    target.mkdir() if name == "keys" else target.write_text("theirs")
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(link) if name == "keys" else link.unlink()
                link.symlink_to(target)
                links.append((name, target, link))
            for name, target, link in links:
                done = served.command()
                said = PLANTED[name]
                if said in {"", "replaced"}:
                    assert done.code == 0, (name, done)
                    with open_db(served.path) as db:
                        db.jobs.add(Job(name="added", command="true"))
                    assert link.is_symlink() == (said == ""), name
                else:
                    assert said in done.error, name
                    link.unlink()
                if name == "keys":
                    assert list(target.iterdir()) == []
                elif exists:
                    assert target.read_text() == "theirs"
                else:
                    assert not target.exists(), name
            if name in {"keys", "dbserver.lease"}:
                served.start()
            served.stop()
    count = sum(len(planted) for planted in kinds)
    verdict(
        "T37", "symbolic links planted in place of our files", f"{count} places: refused or replaced, no target changed"
    )
