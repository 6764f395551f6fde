"""Where we use what a library keeps to itself: these tests fail when a new version changes it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from balsam_core.operations.execution import DatabaseClock, Tx
from balsam_core.schema.prepared import Prepared

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

CHANGED = (
    f"Connection._handle_dbapi_exception of SQLAlchemy {sa.__version__} has changed: Tx._run_on_cursor "
    f"(operations/execution.py) must call it as Connection.execute does"
)


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = sa.create_engine("sqlite://")
    yield made
    made.dispose()


def run_wrong_statement(engine: Engine, cursor: Any = None) -> None:
    with engine.begin() as conn:
        tx = Tx(conn, DatabaseClock())
        tx._cursor = cursor
        tx.run_prepared(Prepared(sa.select(sa.literal_column("missing"))))


def test_the_method_of_sqlalchemy_that_judges_a_drivers_errors_takes_what_we_give() -> None:
    names = list(inspect.signature(sa.Connection._handle_dbapi_exception).parameters)
    assert names == ["self", "e", "statement", "parameters", "cursor", "context", "is_sub_exec"], CHANGED


@pytest.mark.parametrize("lost", [False, True])
def test_it_asks_the_plugins_whether_the_connection_is_lost(engine: Engine, lost: bool) -> None:
    @sa.event.listens_for(engine, "handle_error")
    def judge(context: sa.engine.ExceptionContext) -> None:
        context.is_disconnect = lost

    with pytest.raises(sa.exc.OperationalError) as caught:
        run_wrong_statement(engine)
    assert caught.value.connection_invalidated is lost, CHANGED
    assert caught.value.statement is not None, CHANGED
    assert caught.value.statement.startswith("SELECT missing"), CHANGED
    assert caught.value.__cause__ is caught.value.orig, CHANGED


def test_it_lets_an_interruption_through(engine: Engine) -> None:
    class Cursor:
        def execute(self, _text: str, _values: object) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_wrong_statement(engine, Cursor())
