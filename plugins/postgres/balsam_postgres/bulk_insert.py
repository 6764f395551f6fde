"""Inserting many rows with COPY, about three times as fast as INSERT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import sql

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection


def bulk_insert(connection: Connection, table: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Insert rows inside the connection's transaction.

    Raises:
        sqlalchemy.exc.DBAPIError: The database refuses them, or the connection broke.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    raw: psycopg.Connection[Any] = connection.connection.driver_connection  # type: ignore[assignment]
    try:
        with raw.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row(row)
    except psycopg.Error as err:
        from sqlalchemy.exc import DBAPIError

        from balsam_postgres.errors import is_lost

        lost = raw.closed or raw.broken or is_lost(err)
        if lost:
            connection.invalidate(err)
        raise DBAPIError.instance(
            statement.as_string(), None, err, psycopg.Error, connection_invalidated=lost, dialect=connection.dialect
        ) from err
