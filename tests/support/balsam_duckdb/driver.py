"""DuckDB's Python API in the form of PEP 249: one transaction for a connection, any number of cursors, row counts."""

from __future__ import annotations

import re
from typing import Any

import duckdb
from duckdb import DatabaseError, DataError, Error, IntegrityError, InternalError, OperationalError, ProgrammingError

__all__ = [
    "Connection",
    "DataError",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "InternalError",
    "OperationalError",
    "ProgrammingError",
    "connect",
]

apilevel = "2.0"
threadsafety = 1
paramstyle = "numeric_dollar"
Binary = bytes
NotSupportedError = duckdb.NotSupportedError
InterfaceError = duckdb.Error
Warning = UserWarning  # noqa: A001  (its name in PEP 249)


class Connection:
    """A connection.

    Args:
        path: The file; it is made if it is missing.
    """

    def __init__(self, path: str) -> None:
        self._session = duckdb.connect(path)
        self._session.execute("SET TimeZone = 'UTC'")
        self._failed = False

    def cursor(self) -> Cursor:
        """Return a new cursor."""
        return Cursor(self)

    def run(self, statement: str, parameters: tuple[Any, ...] = ()) -> duckdb.DuckDBPyConnection:
        """Execute a statement, or several that have no parameters.

        Raises:
            Error: DuckDB's, or for a COMMIT after one, which DuckDB would answer with success and roll back.
        """
        if statement == "COMMIT" and self._failed:
            self.rollback()
            raise OperationalError("the transaction had an error before, and was rolled back")
        if statement in {"BEGIN", "ROLLBACK"}:
            self._failed = False
        try:
            return self._session.execute(statement, parameters)
        except duckdb.Error:
            self._failed = True
            raise

    def begin(self) -> None:
        """Begin a transaction."""
        self.run("BEGIN")

    def commit(self) -> None:
        """Commit, if a transaction is open."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """Roll back, if a transaction is open."""
        self._end("ROLLBACK")

    def _end(self, statement: str) -> None:
        try:
            self.run(statement)
        except duckdb.TransactionException as err:
            if "no transaction is active" not in str(err):
                raise
            self._failed = False

    def close(self) -> None:
        """Close it; an open transaction is rolled back."""
        self._session.close()


class Cursor:
    """The rows of one statement, read at once."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.description: Any = None
        self.rowcount = -1
        self._rows: list[tuple[Any, ...]] = []

    def execute(self, statement: str, parameters: Any = ()) -> None:
        """Execute a statement."""
        self._rows = []
        self.description = None
        self.rowcount = -1
        done = self.connection.run(statement, tuple(parameters))
        rows = done.fetchall() if done.description else []
        if re.match(r"\s*(INSERT|UPDATE|DELETE)\b(?!.*\bRETURNING\b)", statement, re.DOTALL):
            self.rowcount = rows[0][0]
        else:
            self.description = done.description
            self._rows = rows

    def executemany(self, statement: str, parameters: Any) -> None:
        """Execute a statement for each of the parameters."""
        count = 0
        for one in parameters:
            self.execute(statement, one)
            count += self.rowcount
        self.rowcount = count

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, None after the last."""
        return self._rows.pop(0) if self._rows else None

    def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        """Return the next rows."""
        rows, self._rows = self._rows[:size], self._rows[size:]
        return rows

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that are left."""
        rows, self._rows = self._rows, []
        return rows

    def close(self) -> None:
        """Forget the rows."""
        self._rows = []


def connect(path: str) -> Connection:
    """Return a connection to a file."""
    return Connection(path)
