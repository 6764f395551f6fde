"""An adopted MariaDB server whose settings are other than Balsam's, by its options and by ``init_connect``."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime

import plugin_dbs
import pytest
from balsam_program import here
from db_servers import MariaDBServer, Missing, skip_kind

from balsam_core import Job, open_db
from balsam_core.backends import registry

pytest.importorskip("balsam_mysql")

DATABASE = "test_foreign"
INIT_CONNECT = (
    "SET autocommit=0, sql_mode='ANSI,PIPES_AS_CONCAT,NO_BACKSLASH_ESCAPES,PAD_CHAR_TO_FULL_LENGTH', "
    "time_zone='+09:00', tx_isolation='SERIALIZABLE', sql_safe_updates=1, sql_select_limit=5, unique_checks=0, "
    "foreign_key_checks=0, completion_type='CHAIN', max_statement_time=0.001, default_storage_engine='MyISAM'; "
    "SET NAMES latin1; START TRANSACTION READ ONLY"
)


SETTINGS = {
    "default_storage_engine": "'MyISAM'",
    "init_connect": f'"{INIT_CONNECT}"',
    "innodb_default_row_format": "'compact'",
    "innodb_force_primary_key": 1,
    "max_join_size": 10,
    "sql_mode": "'ANSI,PAD_CHAR_TO_FULL_LENGTH'",
    "tx_isolation": "'SERIALIZABLE'",
    "tx_read_only": 1,
}


class Foreign(MariaDBServer):
    def argv(self):
        options = ("character-set-server=latin1", "collation-server=latin1_swedish_ci", "lower-case-table-names=1")
        return [*super().argv(), *(f"--{option}" for option in options)]

    def create_database(self, name):
        self.execute(f"CREATE DATABASE {name}", *(f"SET GLOBAL {name}={value}" for name, value in SETTINGS.items()))


@pytest.fixture(scope="module")
def dbdir(run_directory, tmp_path_factory):
    try:
        server = Foreign(run_directory)
    except Missing as missing:
        skip_kind("mysql", missing)
    with contextlib.closing(server):
        server.create_database(DATABASE)
        yield plugin_dbs.make_db(tmp_path_factory.mktemp("foreign") / "db", "mysql", server.url(DATABASE))


def test_they_do_not_matter(dbdir, tmp_path):
    parameters = {"x": 0.1 + 0.2, "text": "back\\slash 'quoted' \"é\" "}
    with open_db(dbdir.path) as db:
        db.jobs.add([Job(command="true", name=f"j{n}", workflow="w", parameters=parameters) for n in range(200)])
        found = list(db.jobs.where(workflow="w"))
        assert len(found) == 200
        assert all(job.parameters == parameters for job in found)
        assert abs((found[0].created_at - datetime.now(UTC)).total_seconds()) < 3600
    here.good("launcher", "--consume-all", db=dbdir.path)
    assert len(here.good("-o", "ids", "ls", "--state", "JOB_FINISHED", db=dbdir.path).ids) == 200


def test_all_tables_are_transactional_and_keep_their_long_keys(dbdir):
    engine = registry.load("mysql").create_engine(dbdir, "reader")
    with engine.connect() as connection, connection.begin():
        rows = connection.exec_driver_sql(
            "SELECT table_name, engine, row_format, table_collation FROM information_schema.tables "
            f"WHERE table_schema = '{DATABASE}'"
        ).all()
    engine.dispose()
    assert len(rows) > 5
    assert {(engine, format_.lower()) for name, engine, format_, _ in rows if name != "schema_version"} == {
        ("InnoDB", "dynamic")
    }
    assert {engine for _, engine, _, _ in rows} == {"InnoDB"}
    assert {collation for name, _, _, collation in rows if name != "schema_version"} == {"utf8mb4_bin"}


def test_a_backup_that_would_be_cut_is_refused(dbdir, tmp_path):
    assert "would cut a backup" in here.refused("backup", tmp_path / "saved", code=6, db=dbdir.path)
    assert not (tmp_path / "saved").exists()
