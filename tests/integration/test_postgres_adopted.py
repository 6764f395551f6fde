"""A DB on a PostgreSQL server that somebody else runs, here the tests' own."""

from __future__ import annotations

import shutil
import stat
from datetime import UTC, datetime

import pytest
from balsam_program import here
from sqlalchemy import make_url

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.dbdir import passwords

pytest.importorskip("balsam_postgres")
psycopg = pytest.importorskip("psycopg")


@pytest.fixture
def theirs(database_url):
    return make_url(database_url("postgres"))


@pytest.fixture
def url(theirs):
    return f"postgresql://{theirs.username}@{theirs.host}:{theirs.port}/{theirs.database}"


@pytest.fixture
def secret(theirs, tmp_path):
    file = tmp_path / "secret"
    file.write_text(theirs.password + "\n")
    file.chmod(0o600)
    return file


def adopt(path, url, *words, **settings):
    return here("init", path, "--db-type", "postgres", "--url", url, *words, **settings)


def refused(done, code, *words):
    assert (done.code, done.err.count("Error: ")) == (code, 1), done
    error = next(line for line in done.err.splitlines() if line.startswith("Error: "))
    for word in words:
        assert word in error


def test_it_works_like_any_other_and_needs_no_dbserver(theirs, url, secret, tmp_path):
    path = tmp_path / "db"
    done = adopt(path, url, "--password-file", secret)
    assert done.code == 0, done.err
    # The tests' server isn't durable, and says so.
    for name in ("fsync", "full_page_writes", "synchronous_commit"):
        assert f"{name}=off" in done.err
    here.good("run", "--", "true", db=path)
    assert here.good("-o", "ids", "ls", db=path).ids == [1]
    with open_db(path) as db:
        db.jobs.add(Job(command="true", workflow="many") for _ in range(300))
        assert db.jobs.where(workflow="many").count() == 300
    done = here("dbserver", db=path)
    assert done.code != 0
    assert "uses a server that somebody else runs: it needs no dbserver" in done.err
    assert not (path / "postgres").exists()
    kept = path / "keys" / "postgres_password"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    for file in path.rglob("*"):
        if file.is_file() and file != kept:
            assert theirs.password.encode() not in file.read_bytes(), file
    # Again, without the password.
    assert initialise(path).created is False
    # A database belongs to one directory.
    refused(adopt(tmp_path / "other", url, "--password-file", secret), 4, "belongs to another DB directory")
    assert not (tmp_path / "other").exists()


def test_a_password_that_is_not_stored_comes_from_the_environment(theirs, url, tmp_path):
    path = tmp_path / "db"
    env = {"BALSAM_DB_PASSWORD": theirs.password}
    done = adopt(path, url, "--option", "store_password=no", env=env)
    assert done.code == 0, done.err
    assert list((path / "keys").iterdir()) == []
    here.good("ls", db=path, env=env)
    passwords._passwords_in_memory.clear()  # this process was told
    refused(here("ls", db=path), 6, "BALSAM_DB_PASSWORD")
    refused(here("ls", db=path, env={"BALSAM_DB_PASSWORD": "wrong"}), 6, "the password is wrong")


def test_what_is_wrong_is_said_in_one_line_and_nothing_is_made(theirs, url, secret, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text("wrong\n")
    wrong.chmod(0o600)
    path = tmp_path / "db"
    refused(adopt(path, url, "--password-file", wrong), 6, "the password is wrong")
    refused(adopt(path, f"{url}?sslmode=require", "--password-file", secret), 6, "it doesn't encrypt")
    refused(adopt(path, f"{url}?sslmode=verify-full&sslrootcert=ca.pem", "--password-file", secret), 5, "in full")
    refused(adopt(path, f"{url}?colour=red", "--password-file", secret), 5, "can't be understood")
    refused(adopt(path, url.replace(theirs.database, "nowhere"), "--password-file", secret), 6, "no such database")
    refused(adopt(path, url.replace(f":{theirs.port}", ":1"), "--password-file", secret), 6, "can't be reached")
    refused(adopt(path, url.replace("postgresql:", "mysql:"), "--password-file", secret), 5)
    refused(adopt(path, url, "--password-file", secret, "--option", "durability=most"), 5, "full or relaxed")
    assert not path.exists()


def test_a_user_who_may_make_no_tables_is_refused(theirs, databases, url, secret, tmp_path):
    with databases.server("postgres").connect(theirs.database) as admin:
        admin.execute("CREATE SCHEMA closed")
        admin.execute("GRANT USAGE ON SCHEMA closed TO PUBLIC")
    done = adopt(tmp_path / "db", f"{url}?options=-c%20search_path%3Dclosed", "--password-file", secret)
    refused(done, 6, "may not make tables")


def test_a_backup_needs_no_server_of_ours(url, secret, tmp_path):
    path = tmp_path / "db"
    assert adopt(path, url, "--password-file", secret).code == 0
    here.good("run", "--", "true", db=path)
    here.good("backup", tmp_path / "saved", db=path)
    assert b"PGDMP" in (tmp_path / "saved").read_bytes()


def test_a_database_that_holds_something_else_is_left_as_it_is(theirs, databases, url, secret, tmp_path):
    with databases.server("postgres").connect(theirs.database) as admin:
        admin.execute("CREATE TABLE inventory (id int)")
        done = adopt(tmp_path / "db", url, "--password-file", secret)
        refused(done, 4, "the database is not empty", "'inventory'", "ask for an empty one")
        assert ".balsam-init" not in done.err
        rows = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert rows == [("inventory",)]
    assert not (tmp_path / "db").exists()


def test_what_an_init_left_that_was_killed_is_taken_over_once_used_never(url, secret, tmp_path):
    killed, path = tmp_path / "killed", tmp_path / "db"
    assert adopt(killed, url, "--password-file", secret).code == 0
    done = adopt(path, url, "--password-file", secret)
    assert done.code == 0, done.err
    assert "was made for another DB directory" in done.err
    # Had it got its name after all, it would notice.
    refused(here("ls", db=killed), 4, "belongs to another DB directory now")
    shutil.rmtree(killed)
    assert adopt(path, url, "--password-file", secret).code == 0
    added = here.good("run", "--", "true", db=path)
    assert added.code == 0
    here.good("rm", "1", "--yes", db=path)  # used, though empty again
    refused(adopt(tmp_path / "third", url, "--password-file", secret), 4, "belongs to another DB directory", "restore")


def test_settings_of_the_role_and_the_database_do_not_matter(theirs, databases, url, secret, tmp_path):
    settings = {
        "statement_timeout": "'1ms'",
        "default_transaction_read_only": "on",
        "DateStyle": "'German'",
        "TimeZone": "'Asia/Tokyo'",
        "IntervalStyle": "'sql_standard'",
        "bytea_output": "'escape'",
        "standard_conforming_strings": "off",
        "extra_float_digits": "-15",
        "default_transaction_isolation": "'serializable'",
        "client_min_messages": "error",
        "lock_timeout": "'1ms'",
    }
    with databases.server("postgres").connect() as admin:
        for name, value in settings.items():
            admin.execute(f"ALTER DATABASE {theirs.database} SET {name} = {value}")
    path = tmp_path / "db"
    assert adopt(path, url, "--password-file", secret).code == 0
    parameters = {"x": 0.1 + 0.2, "text": "back\\slash 'quoted'"}
    with open_db(path) as db:
        db.jobs.add([Job(command="true", workflow="w", parameters=parameters) for _ in range(2000)])
        assert {tuple(job.parameters.items()) for job in db.jobs.where(workflow="w")} == {tuple(parameters.items())}
        utc = datetime.now(UTC)
        assert abs((next(iter(db.jobs.where(workflow="w"))).created_at - utc).total_seconds()) < 3600
    here.good("launcher", "--consume-all", db=path)
    here.good("backup", tmp_path / "saved", db=path)
