"""Passwords of adopted servers, with all that a person may choose, in programs whose locale is not UTF-8."""

from __future__ import annotations

import pytest
from balsam_program import child
from sqlalchemy import make_url

SCHEMES = {"postgres": "postgresql", "mysql": "mysql"}
ASCII = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


@pytest.fixture(params=SCHEMES)
def database(request, databases, database_url):
    """A function that gives the user of a new database a password, and returns kind and URL."""
    url = make_url(database_url(request.param))
    server = databases.server(request.param)
    statement = {"postgres": "ALTER ROLE balsam PASSWORD '{}'", "mysql": "ALTER USER balsam@'%' IDENTIFIED BY '{}'"}

    def change(password):
        escaped = password.replace("'", "''")
        if request.param == "mysql":
            escaped = escaped.replace("\\", "\\\\")
        server.execute(statement[request.param].format(escaped))
        return request.param, f"{SCHEMES[request.param]}://{url.username}@{url.host}:{url.port}/{url.database}"

    yield change
    change(server.password)


@pytest.mark.parametrize("password", ["Gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n \N{SNOWMAN} ", '#"x\'y\\n";$%'])
@pytest.mark.parametrize("stored", [True, False])
def test_every_password_works_for_every_command(database, tmp_path, password, stored):
    kind, url = database(password)
    file = tmp_path / "password"
    file.write_bytes(password.encode() + b"\n")
    file.chmod(0o600)
    path = tmp_path / "db"
    env = ASCII if stored else {**ASCII, "BALSAM_DB_PASSWORD": password}
    words = ["--password-file", file] if stored else ["--option", "store_password=no"]
    child.good("init", path, "--db-type", kind, "--url", url, *words, env=env)
    child.good("run", "--", "true", db=path, env=env)
    child.good("backup", tmp_path / "saved", db=path, env=env)


def test_a_file_that_holds_no_password_is_refused(database, tmp_path):
    kind, url = database("secret")
    file = tmp_path / "password"
    file.write_bytes(b"gr\xfcn\n")
    file.chmod(0o600)
    child.refused("init", tmp_path / "db", "--db-type", kind, "--url", url, "--password-file", file, code=5)
    assert not (tmp_path / "db").exists()
