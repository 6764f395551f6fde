"""Paths and options that a shell, a server or a driver could misread: passed on as they are, or refused."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from amounts import FULL
from backend_dbs import ROOT, SERVER_KINDS
from balsam_program import BALSAM, Program
from db_servers import skip_kind

CANARY = "canary"
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


@pytest.fixture
def balsam(tmp_path):
    """The program, run in an empty directory."""
    return Program(BALSAM, cwd=tmp_path)


def no_canary(*places):
    found = [path for place in (*places, ROOT) for path in place.glob(f"{CANARY}*")]
    assert not found
    assert not Path(f"/{CANARY}").exists()


@pytest.mark.parametrize("any_kind", ["sqlite", *SERVER_KINDS] if FULL else SERVER_KINDS)
def test_odd_paths(balsam, run_directory, any_kind, tmp_path, amount, verdict):
    """The DB's path has shell characters or other oddities: all works, and nothing is executed (T38, T39)."""
    names = amount(["hostile"], list(PATHS))
    for name in names:
        path = run_directory / f"{any_kind} odd" / PATHS[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        made = balsam("init", path, "--db-type", any_kind)
        if made.code == 12 and "install" in made.err and "failed in" not in made.err:
            skip_kind(any_kind, made.error)
        assert made.code == 0, made
        try:
            balsam.good("dbserver", "--path", path)
            balsam.good("job", "--name", HOSTILE, "--command", "true", "--db", path)
            assert "newline" in name or "1" in balsam.good("ls", "--db", path).out
        finally:
            balsam.good("dbserver", "--stop", "--path", path)
        no_canary(tmp_path, path, path.parent, *(one for one in path.iterdir() if one.is_dir()))
        subprocess.run(["rm", "-r", "--", path], check=True)
    verdict(
        "T39", f"{any_kind}: paths {', '.join(names)}", "init, dbserver, job, ls, --stop work; nothing was executed"
    )


def test_odd_options(balsam, run_directory, kind, tmp_path, verdict):
    """Options hold shell characters: they are refused in one line, nothing is made or executed (T38)."""
    path = run_directory / f"{kind} never"
    for words in OPTIONS:
        told = [word.format(scheme=SCHEME[kind]) if "{" in word else word for word in words]
        line = balsam.refused("init", path, "--db-type", kind, *told)
        assert line.isprintable(), line
        assert not path.exists(), words
    no_canary(tmp_path, run_directory)
    verdict("T38", f"{kind}: options with shell characters", f"{len(OPTIONS)} refused in one line, nothing executed")


def test_odd_hosts(balsam, backend, kind, tmp_path, verdict):
    """Host names hold shell characters: they are refused in one line, nothing is executed (T38)."""
    backend.stop()
    hosts = [f"$(touch {CANARY})", f"127.0.0.1;touch {CANARY}", "127.0.0.1' -c fsync=off", "-h", "no\nhost"]
    for host in hosts:
        line = balsam.refused("dbserver", "--path", backend.path, f"--host={host}")
        assert line.isprintable(), line
    no_canary(tmp_path, backend.path)
    verdict("T38", f"{kind}: hosts with shell characters", f"{len(hosts)} refused in one line, nothing executed")
