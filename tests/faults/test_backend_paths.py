"""Paths and options that a shell, a server or a driver could misread: passed on as they are, or refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from backend_dbs import BALSAM, KINDS, ROOT, lacking, one_line

CANARY = "canary"
QUICK = os.environ.get("BALSAM_FAULTS") != "full"
HOSTILE = f"a;touch {CANARY};$(touch {CANARY})`touch {CANARY}`'\"\\|&> %s {{x}} #é☃\nnew -line"
PATHS = {
    "hostile": HOSTILE,
    "long": "l" * 200,
    "spaces": " two  spaces ",
    "unicode": "Ünï-☃-日本",
    "newline": "one\ntwo",
    "for a socket": "deep/" * 12 + "db",
}
OPTIONS = [
    ["--option", f"durability=$(touch {CANARY})"],
    ["--option", f"bindir=/nowhere;touch {CANARY}"],
    ["--option", f"server_user=`touch {CANARY}`"],
    ["--option", f"$(touch {CANARY})=x"],
    ["--url", f"{{scheme}}://u@$(touch {CANARY})/db"],
    ["--url", f"{{scheme}}://u@127.0.0.1:1/db?x=;touch {CANARY}"],
]
SCHEME = {"postgres": "postgresql", "mysql": "mysql"}


def balsam(cwd, *words):
    return subprocess.run([*BALSAM, *words], capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def good(cwd, *words):
    done = balsam(cwd, *words)
    if done.returncode == 12 and "install" in done.stderr and "failed in" not in done.stderr:
        lacking(words[words.index("--db-type") + 1], done.stderr.strip())
    assert done.returncode == 0, done
    return done.stdout


def no_canary(*places):
    found = [path for place in (*places, ROOT) for path in place.glob(f"{CANARY}*")]
    assert not found
    assert not Path(f"/{CANARY}").exists()


@pytest.mark.parametrize("any_kind", KINDS if QUICK else ["sqlite", *KINDS])
def test_odd_paths(guarded, any_kind, tmp_path, amount, verdict):
    """T38, T39: init, start, write, stop."""
    names = amount(["hostile"], list(PATHS))
    for name in names:
        path = guarded / f"{any_kind} odd" / PATHS[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        good(tmp_path, "init", str(path), "--db-type", any_kind)
        try:
            good(tmp_path, "dbserver", "--path", str(path))
            good(tmp_path, "job", "--name", HOSTILE, "--command", "true", "--db", str(path))
            assert "newline" in name or "1" in good(tmp_path, "ls", "--db", str(path))
        finally:
            good(tmp_path, "dbserver", "--stop", "--path", str(path))
        no_canary(tmp_path, path, path.parent, *(one for one in path.iterdir() if one.is_dir()))
        subprocess.run(["rm", "-r", "--", path], check=True)
    verdict(
        "T39", f"{any_kind}: paths {', '.join(names)}", "init, dbserver, job, ls, --stop work; nothing was executed"
    )


def test_odd_options(guarded, kind, tmp_path, verdict):
    """T38: refused in one line, and nothing is made."""
    path = guarded / f"{kind} never"
    for words in OPTIONS:
        told = [word.format(scheme=SCHEME[kind]) if "{" in word else word for word in words]
        line = one_line(balsam(tmp_path, "init", str(path), "--db-type", kind, *told))
        assert line.isprintable(), line
        assert not path.exists(), words
    no_canary(tmp_path, guarded)
    verdict("T38", f"{kind}: options with shell characters", f"{len(OPTIONS)} refused in one line, nothing executed")


def test_odd_hosts(backend, kind, tmp_path, verdict):
    """T38."""
    backend.stop()
    hosts = [f"$(touch {CANARY})", f"127.0.0.1;touch {CANARY}", "127.0.0.1' -c fsync=off", "-h", "no\nhost"]
    for host in hosts:
        line = one_line(balsam(tmp_path, "dbserver", "--path", str(backend.path), f"--host={host}"))
        assert line.isprintable(), line
    no_canary(tmp_path, backend.path)
    verdict("T38", f"{kind}: hosts with shell characters", f"{len(hosts)} refused in one line, nothing executed")
