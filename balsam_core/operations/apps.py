"""Operations on apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict
from sqlalchemy import delete, insert, select, update

from balsam_core.errors import Conflict
from balsam_core.model.app import App
from balsam_core.model.calls import AddApp, GetApps, RemoveApp
from balsam_core.operations.execution import operation
from balsam_core.operations.small_tables import unknown_app
from balsam_core.schema.tables import apps, jobs

if TYPE_CHECKING:
    from balsam_core.operations.execution import Tx


def _app_from_row(row: Any) -> App:  # noqa: ANN401  (a database row)
    """Return an app; what is empty is stored as NULL."""
    return App(**{name: value for name in App.__struct_fields__ if (value := getattr(row, name)) is not None})


def read_apps(tx: Tx, ids: set[int]) -> dict[int, App]:
    """Return apps by id."""
    return {row.id: _app_from_row(row) for row in tx.execute(select(apps).where(apps.c.id.in_(ids)))} if ids else {}


@operation(AddApp)
def add_app(tx: Tx, call: AddApp) -> int:
    """Define or redefine an app."""
    app = call.app
    app.check()
    values = {name: value or None for name, value in asdict(app).items()}
    row = tx.execute(select(apps).where(apps.c.name == app.name).with_for_update()).first()
    if row is None:
        app_id = tx.take_ids("apps")
        tx.execute(insert(apps), {"id": app_id} | values)
        return app_id
    app_id = int(row.id)
    if _app_from_row(row) != app:
        if not call.replace:
            raise Conflict(
                f"app {app.name!r} exists already and differs; choose another name, or replace it (--replace)"
            )
        if tx.cache is not None:
            tx.cache.clear()
        tx.execute(update(apps).where(apps.c.id == app_id).values(values))
    return app_id


@operation(GetApps)
def get_apps(tx: Tx, call: GetApps) -> list[App]:
    """Read apps by name."""
    query = select(apps).order_by(apps.c.name)
    if call.names is not None:
        query = query.where(apps.c.name.in_(call.names))
    found = [_app_from_row(row) for row in tx.execute(query)]
    missing = sorted(set(call.names or ()) - {app.name for app in found})
    if missing:
        raise unknown_app(tx, missing[0])
    return found


@operation(RemoveApp)
def remove_app(tx: Tx, call: RemoveApp) -> None:
    """Remove an unused app."""
    app_id = tx.execute(select(apps.c.id).where(apps.c.name == call.name).with_for_update()).scalar()
    if app_id is None:
        raise unknown_app(tx, call.name)
    user = tx.execute(select(jobs.c.id).where(jobs.c.app_id == app_id).limit(1)).scalar()
    if user is not None:
        raise Conflict(f"app {call.name!r} is used by job {user} and maybe others; remove these first")
    if tx.cache is not None:
        tx.cache.clear()
    tx.execute(delete(apps).where(apps.c.id == app_id))
