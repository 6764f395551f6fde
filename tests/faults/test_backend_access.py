"""Who may talk to PostgreSQL's and MariaDB's server: whoever can read the password; and where that is not."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from amounts import at_most
from backend_dbs import make_db
from balsam_program import BALSAM, Program, child

from balsam_core import BalsamError, Job, open_db
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir
from balsam_core.errors import Unavailable

PASSWORD = {"postgres": "postgres_password", "mysql": "mysql_password"}
NOBODY = 65534
ACCOUNTS = ["balsam", "balsam_admin", "postgres", "root", "mysql", "mariadb.sys", "nobody", ""]


def light_copy(db, path):
    """Make a DB directory that leads to the same server: all that a client reads, and no data."""
    path.mkdir(mode=0o700)
    for name in ("balsam.toml", "keys"):
        subprocess.run(["cp", "-a", db.path / name, path], check=True)
    copy = DBDir.open(path)
    address.write(copy, msgspec.structs.replace(db.address, directory=path.stat().st_ino))
    return copy


def damaged(file, content, mode):
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
        file.chmod(mode)


def refused_by_api(path):
    began = time.monotonic()
    with pytest.raises(BalsamError) as caught, open_db(path) as opened:
        opened.jobs.add(Job(name="intruder", command="true"))
    assert str(caught.value).isprintable()
    return str(caught.value), time.monotonic() - began


def refused_by_cli(path, balsam=child):
    began = time.monotonic()
    line = balsam.refused("job", "--name", "intruder", "--command", "true", "--db", path)
    return line, time.monotonic() - began


def test_wrong_passwords_are_refused(backend, kind, run_directory, verdict):
    """The password is missing, wrong, or open to others: programs are refused in one line (T27)."""
    right = (backend.dir.keys / PASSWORD[kind]).read_bytes()
    cases = {
        "missing": (None, 0o600, PASSWORD[kind]),
        "wrong": (b"x" * 32, 0o600, "password"),
        "empty": (b"", 0o600, "password"),
        "garbage": (b"\xff\xfe\0" * 20, 0o600, ""),
        "open to the group": (right, 0o640, "chmod 600"),
        "open to all": (right, 0o604, "chmod 600"),
        "huge": (b"y" * 2_000_000, 0o600, ""),
    }
    copies = {name: light_copy(backend, run_directory / f"{kind} copy {name}") for name in cases}
    with open_db(backend.path) as opened:
        before = opened.jobs.count()

    def knock(name):
        content, mode, expected = cases[name]
        copy = copies[name]
        damaged(copy.keys / PASSWORD[kind], content, mode)
        by_api, seconds = refused_by_api(copy.path)
        by_cli, more = refused_by_cli(copy.path)
        for line in (by_api, by_cli):
            assert expected in line, (name, line)
            assert right.decode().strip() not in line
        return max(seconds, more)

    with ThreadPoolExecutor(4) as pool:
        took = dict(zip(cases, pool.map(knock, cases), strict=True))
    assert max(took.values()) <= at_most(10)  # of a busy machine; each is refused at the first attempt
    with open_db(backend.path) as opened:
        assert opened.jobs.count() == before
    for copy in copies.values():
        shutil.rmtree(copy.path)
    verdict(
        "T27",
        f"{kind}: password missing, wrong, open to others",
        f"{len(cases)} cases by API and CLI: refused in one line after {max(took.values()):.1f} s, 0 rows changed",
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_user_is_refused(backend, kind, run_directory, verdict):
    """Another user comes while all but the password is open to him: he is refused in one line (T27)."""
    setpriv = shutil.which("setpriv") or pytest.skip("setpriv is missing")
    become = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--"]
    if subprocess.run([*become, sys.executable, "-c", "import balsam_core.cli"], check=False, cwd="/").returncode:
        pytest.skip("another user can't run this Python")
    balsam = Program([*become, *BALSAM], env={"PYTHONDONTWRITEBYTECODE": "1"}, cwd="/")
    copy = light_copy(backend, run_directory / f"{kind} open")
    mode, lines = run_directory.stat().st_mode, []
    try:
        lines.append(refused_by_cli(copy.path, balsam))
        run_directory.chmod(0o755)
        for place in (copy.path, copy.address_file, copy.config_file):
            place.chmod(stat.S_IMODE(place.stat().st_mode) | 0o055)
        lines.append(refused_by_cli(copy.path, balsam))
        copy.keys.chmod(0o755)
        lines.append(refused_by_cli(copy.path, balsam))
    finally:
        run_directory.chmod(stat.S_IMODE(mode))
        shutil.rmtree(copy.path)
    assert "permission denied" in lines[-1][0]
    assert PASSWORD[kind] in lines[-1][0]
    verdict("T27", f"{kind}: another user", f"refused in one line after {max(took for _, took in lines):.1f} s")


def test_everything_is_the_owner_s_alone(run_directory, kind, amount, verdict):
    """The umask is lax: all files are the owner's alone, and no password is anywhere but in ``keys/`` (T40)."""
    for umask in amount([0o000], [0o000, 0o002, 0o022]):
        previous = os.umask(umask)
        try:
            with make_db(kind, run_directory / f"{kind} umask {umask:03o}") as db:
                check_modes(db.path)
                db.start("--host", "0.0.0.0")
                with open_db(db.path) as opened:
                    opened.jobs.add(Job(name="a", command="true"))
                before = db.kill_server()
                db.wait_for_another(before)
                files, processes = look_for(db, (db.dir.keys / PASSWORD[kind]).read_bytes().strip())
                check_modes(db.path)
                db.stop()
                check_modes(db.path)
        finally:
            os.umask(previous)
        verdict(
            "T40",
            f"{kind}: modes and secrets under umask {umask:03o}",
            f"directories 0700, files 0600; the password in none of {files} files beside keys/, nor in argv and"
            f" environment of {processes} processes",
        )


def check_modes(path):
    for place in [path, *path.rglob("*")]:
        try:
            status = place.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # a temporary file of the running server
        assert not status.st_mode & 0o077, (oct(status.st_mode), place)
        if place.parent.name == "keys":
            assert stat.S_IMODE(status.st_mode) == 0o600, place


def look_for(db, secret):
    """Look for a secret in all files but the keys, and in what other users may see of processes."""
    assert len(secret) >= 32
    files = processes = 0
    for place in db.path.rglob("*"):
        if place.is_file() and place.parent.name != "keys":
            assert secret not in place.read_bytes(), place
            files += 1
    ours = {process.pid for process in db.processes()}
    seen = set()
    for pid in psutil.pids():
        for what in ("cmdline", "environ"):
            try:
                content = Path(f"/proc/{pid}/{what}").read_bytes()
            except OSError:
                continue
            seen.add(pid)
            assert secret not in content, (pid, what)
        processes += 1
    assert ours & seen
    return files, processes


# ----------------------------------------------------------------------------------------------------------- listeners


def listeners(db):
    """Return host and port of all TCP listeners, and paths of all unix ones, of the watchdog, server and children."""
    waiting = {
        line.split()[6]: line.split()[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()[1:]
        if int(line.split()[3], 16) & 0x10000
    }
    found = set()
    for process in db.processes():
        found |= {
            tuple(one.laddr)
            for one in process.net_connections(kind="inet")
            if one.status == psutil.CONN_LISTEN or one.type != socket.SOCK_STREAM
        }
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                name = str(descriptor.readlink())
            except OSError:
                continue
            inode = name.removeprefix("socket:[").removesuffix("]")
            if inode in waiting:
                found.add(waiting[inode])
    return found


def log_in(kind, host, port, user, password, database="balsam", *, encrypted=False):
    """Log in with the bare driver; raises its error."""
    if kind == "postgres":
        import psycopg

        mode = "require" if encrypted else "disable"
        with psycopg.connect(
            host=host, port=port, user=user or "balsam", password=password or "", dbname=database,
            sslmode=mode, connect_timeout=5, passfile="/nonexistent",
        ) as connection:  # fmt: skip
            connection.execute("SELECT 1")
        return
    import MySQLdb

    mode = "REQUIRED" if encrypted else "DISABLED"
    settings = {"passwd": password} if password else {}
    with closing(MySQLdb.connect(host=host, port=port, user=user, ssl_mode=mode, connect_timeout=5, **settings)) as one:
        one.query("SELECT 1")


def refuses(kind, *where, **settings):
    try:
        log_in(kind, *where, **settings)
    except Exception as err:  # noqa: BLE001  (a driver's own)
        return str(err)
    return ""


def own_address():
    """Return an address of this machine that is no loopback."""
    for found in psutil.net_if_addrs().values():
        for one in found:
            if one.family == socket.AF_INET and not one.address.startswith("127."):
                return one.address
    return None


@contextmanager
def listening(db, *words):
    db.stop()
    db.start(*words)
    try:
        yield db.address
    finally:
        db.stop()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_nobody_gets_in_without_the_password(backend, kind, verdict, host):
    """Somebody tries to log in at each address under each account without the password: no attempt succeeds (T41)."""
    secret = (backend.dir.keys / PASSWORD[kind]).read_text().strip()
    other = own_address()
    attempts = 0
    with listening(backend, "--host", host) as published:
        assert listeners(backend) == {(host, published.port)}
        log_in(kind, "127.0.0.1", published.port, "balsam", secret, encrypted=published.details.get("tls") == "on")
        for place in ["127.0.0.1", "::1", *([other] if other else [])]:
            for user in ACCOUNTS:
                for password in (None, user, "wrong"):
                    for database in ("balsam", "postgres") if kind == "postgres" else ("balsam",):
                        settings = (place, published.port, user, password, database)
                        assert refuses(kind, *settings), settings
                        attempts += 1
            for encrypted in (True, False):
                assert refuses(kind, place, published.port, "balsam", None, encrypted=encrypted)
        if other and host != "127.0.0.1":
            assert refuses(kind, other, published.port, "balsam", secret)
            log_in(kind, other, published.port, "balsam", secret, encrypted=True)
            assert published.details["tls"] == "on"
            with open_db(backend.path) as opened:
                opened.jobs.count()
    verdict(
        "T41",
        f"{kind}: listening on {host}",
        f"one listener, no unix socket; {attempts} attempts without the password refused"
        + (", plain text with the password too" if other and host != "127.0.0.1" else ""),
    )


def test_errors_of_the_transport_hide_nothing(backend, kind, verdict):
    """The server doesn't run: what a client is told names no password (T40)."""
    secret = (backend.dir.keys / PASSWORD[kind]).read_text().strip()
    backend.stop()
    with pytest.raises(Unavailable) as caught, open_db(backend.path) as opened:
        opened.jobs.count()
    assert secret not in str(caught.value)
    assert "balsam dbserver" in str(caught.value)
    verdict("T40", f"{kind}: errors", "name no secret")
