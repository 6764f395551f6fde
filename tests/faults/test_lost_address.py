"""``dbwriter_address`` is lost, damaged or unreadable for a while: an outage like any other."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import signal
import subprocess
import time

import pytest
import shims
from amounts import at_most
from backend_dbs import SERVER_KINDS, make_db, report_of
from balsam_program import BALSAM, child
from exact import writers
from exact_writer import Hurried
from served_db import ADDRESS_DAMAGES

from balsam_core import BalsamError, Job, open_db
from balsam_core.client.jobs import Jobs
from balsam_core.dbdir import address
from balsam_core.errors import AddressError, SchemaMismatch, ServerNotRunning, Unavailable
from balsam_core.model import calls
from balsam_core.system.files import pasted
from balsam_core.system.processes import start_of
from balsam_core.testing.tools import wait_until


@contextlib.contextmanager
def few_descriptors(number):
    """Let this process open only so many more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(number + 1)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened[-1], limits[1]))
    for descriptor in opened:
        os.close(descriptor)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture(params=["sqlite", *SERVER_KINDS])
def lost(request, run_directory):
    """A DB of each kind whose server runs, and the shim that makes its address unreadable for some clients."""
    with make_db(request.param, run_directory / f"lost {request.param}") as db:
        db.start()
        yield db


def is_published(db, published):
    try:
        return address.read(db.dir) == published
    except (AddressError, SchemaMismatch):
        return False


def run(db, *words, env=None):
    """Start a program on the DB."""
    return subprocess.Popen(
        [*BALSAM, *words, "--db", str(db.path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )


def test_address_lost_under_writers_and_a_launcher(lost, tmp_path, amount, verdict):
    """The address is lost or damaged: the watchdog publishes it again, writers and launchers go on (T44)."""
    db, file, published = lost, lost.dir.address_file, lost.address
    damages = ADDRESS_DAMAGES if db.dir.db_type == "sqlite" else amount(["deleted", "garbled"], ADDRESS_DAMAGES)
    ended = tmp_path / "ended"
    slowest = 0.0
    with open_db(db.path) as opened:
        opened.jobs.add(Job(name="long", command=f"sh -c 'until test -e {ended}; do sleep 0.1; done'"))
    with writers(db.path, 3, tmp_path, pause=0.02) as clients, run(db, "launcher", "--consume-all") as launcher:
        try:
            clients.begin()
            clients.wait_for_more(10)
            for name in damages:
                damage = ADDRESS_DAMAGES[name]
                damage(file)
                began = time.monotonic()
                child.good("ls", db=db.path)
                wait_until(lambda: is_published(db, published), f"the publication after: {name}")
                slowest = max(slowest, time.monotonic() - began)
                damage(file)
                shown = child.good("dbserver", "--status", "-o", "json", db=db.path).json
                assert shown["state"] in {"starting", "running"}, name
                began = time.monotonic()
                again = child.good("dbserver", "-o", "json", db=db.path).json
                assert time.monotonic() - began < at_most(5), name
                assert (again["already"], again["pid"]) == (True, published.pid)
                clients.wait_for_more(3)
            clients.stop()
            clients.finish()
            assert launcher.poll() is None, launcher.communicate()
            ended.touch()
            _, err = launcher.communicate(timeout=120)
        finally:
            launcher.kill()
        assert launcher.returncode == 0, err
        report = report_of(clients, db)
    report.assert_exact()
    assert not report.errors, report
    with open_db(db.path) as opened:
        assert opened.jobs.states() == {"JOB_FINISHED": report.acked + 1}
    assert slowest < at_most(5)
    assert db.lease.restarts == 0
    verdict(
        "T44",
        f"{db.dir.db_type}: address {', '.join(damages)} under 3 writers and a launcher",
        f"published again within {slowest:.1f} s; commands waited, the launcher went on: {report}",
    )


def test_address_lost_while_the_watchdog_is_frozen(lost, verdict):
    """The address is lost and not published again: clients wait, and none goes past the server (T44)."""
    db = lost
    with open_db(db.path) as opened:
        opened.jobs.add(Job(name="before", command="true"))
        os.kill(db.watchdog, signal.SIGSTOP)
        db.dir.address_file.unlink()
        with (
            run(db, "job", "--name", "late", "--command", "true") as waiting,
            run(db, "launcher", "--consume-all") as launcher,
        ):
            try:
                with open_db(db.path) as new, pytest.raises(BalsamError) as caught:
                    new.transport.run(calls.CountJobs(), timeout=1)
                assert (caught.value.code, caught.value.exit_code) == ("address", 6)
                assert f"balsam init {pasted(db.path)}" in str(caught.value)
                opened.jobs.add(Job(name="known", command="true"))
                time.sleep(4)
                assert waiting.poll() is None, waiting.communicate()
                assert launcher.poll() is None, launcher.communicate()
                os.kill(db.watchdog, signal.SIGCONT)
                _, err = waiting.communicate(timeout=60)
                assert waiting.returncode == 0, err
                wait_until(lambda: opened.jobs.states().get("JOB_FINISHED"), "the launcher's work")
            finally:
                os.kill(db.watchdog, signal.SIGCONT)
                for process in (waiting, launcher):
                    process.kill()
    assert db.lease.restarts == 0
    verdict("T44", f"{db.dir.db_type}: address lost, the watchdog frozen for 4 s", "clients waited, none went past")


def test_address_lost_after_watchdog_and_server_have_died(lost, verdict):
    """All that knew of the server is gone: what says so names the way back, and no process (T44)."""
    db = lost
    pids = (db.watchdog, db.address.pid)
    with open_db(db.path) as opened, run(db, "launcher", "--consume-all") as launcher:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):  # a server ends with its watchdog
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: start_of(db.address.pid) is None, "the server's end")
        db.dir.address_file.unlink()
        launcher.kill()
        with pytest.raises(
            ServerNotRunning, match=re.escape(f"start it with balsam dbserver --path={pasted(db.path)}")
        ):
            open_db(db.path).jobs.count()
        with pytest.raises(Unavailable):
            opened.transport.run(calls.CountJobs(), timeout=1)
    for words in (["ls"], ["run", "--", "true"], ["launcher", "--consume-all"]):
        assert child.refused(*words, code=6, db=db.path).endswith(
            f"start it with balsam dbserver --path={pasted(db.path)}"
        )
    for words, code in ((["status"], 6), (["dbserver", "--status"], 0)):
        done = child(*words, db=db.path)
        assert done.code == code
        assert "dead: it is not running, and its address is lost; start it again with balsam dbserver" in done.out
        assert not [pid for pid in pids if re.search(rf"\b{pid}\b", done.out)]
    known = child.good("dbserver", "--status", "-o", "json", db=db.path).json
    assert (known["state"], known["pid"], known["watchdog_pid"]) == ("stale", None, None)
    assert not child.good("dbserver", "-o", "json", db=db.path).json["already"]
    child.good("ls", db=db.path)
    verdict("T44", f"{db.dir.db_type}: watchdog and server killed, address deleted", "told; dbserver starts it again")


@pytest.mark.parametrize("error", [errno.EIO, errno.EACCES, errno.EMFILE], ids=errno.errorcode.get)
def test_address_unreadable_for_clients(served, tmp_path, error, verdict):
    """The address can't be read for a moment: CLI and launcher wait, and don't open the file themselves (T44)."""
    shim = shims.FailIO(tmp_path)
    shim.set(error, path="dbwriter_address", calls=["read"])
    env = shims.preload(shim)
    words = ("job", "--name", "late", "--command", "true")
    with open_db(served.path) as db:
        db.jobs.add(Job(name="before", command="true"))
    with run(served, *words, env=env) as job, run(served, "launcher", "--consume-all", env=env) as launcher:
        try:
            wait_until(lambda: shim.hits > 40, "the attempts")
            assert (job.poll(), launcher.poll()) == (None, None), "both wait"
            shim.off()
            _, err = job.communicate(timeout=60)
            assert job.returncode == 0, err
            with open_db(served.path) as db:
                wait_until(lambda: db.jobs.states().get("JOB_FINISHED"), "the launcher's work")
        finally:
            for process in (job, launcher):
                process.kill()
    verdict("T44", f"{errno.errorcode[error]} while the address is read", "CLI and launcher waited for it")


def test_no_descriptors_left_while_the_address_is_read(served, tmp_path, verdict):
    """A client has no descriptor left when the address was written anew: it goes on with the server it knows (T44)."""
    with writers(served.path, 2, tmp_path, pause=0.01) as clients:
        clients.begin()
        clients.wait_for_more(5)
        limits = [resource.prlimit(one.pid, resource.RLIMIT_NOFILE) for one in clients.processes]
        for one in clients.processes:
            resource.prlimit(one.pid, resource.RLIMIT_NOFILE, (3, limits[0][1]))
        for _ in range(3):
            address.write(served.dir, served.address)
            clients.wait_for_more(10)
        for one, limit in zip(clients.processes, limits, strict=True):
            resource.prlimit(one.pid, resource.RLIMIT_NOFILE, limit)
        clients.stop()
        clients.finish()
        report = report_of(clients, served)
    report.assert_exact()
    assert not report.errors, report
    verdict("T44", "no descriptors left while the address is read", str(report))


@pytest.mark.parametrize("setup", ["sqlite direct", "sqlite served", *SERVER_KINDS])
def test_no_descriptors_left_to_connect(setup, run_directory, verdict):
    """A program has too few descriptors for a connection: its call waits until its deadline, then says so (T44)."""
    errors = 0
    with make_db(setup.split()[0], run_directory / f"full {setup}") as made:
        if setup != "sqlite direct":
            made.start()
        with open_db(made.path) as db:
            db.jobs.add(Job(name="before", command="true"))  # imports what is imported late
        for number in range(8):
            job, error = Job(name=f"late{number}", command="true"), None
            with open_db(made.path) as db:
                try:
                    with few_descriptors(number):
                        Jobs(Hurried(db.transport, 0.5)).add(job)
                except BalsamError as err:
                    error = err
                assert db.jobs.where(name=job.name).count() == (error is None), number
            if error:
                said = "didn't answer" if made.dir.db_type == "sqlite" else "too many open files"
                assert isinstance(error, Unavailable), error
                assert re.search(f"(?i)too many open files|{said}", str(error)), (number, error)
                errors += 1
    assert errors
    verdict("T44", f"{setup}: no descriptors left for a connection", "said so, nothing was changed")
