"""Operations on apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import asdict
from sqlalchemy import delete, insert, select, update

from balsam_core.errors import Conflict, InvalidInput
from balsam_core.model.app import App
from balsam_core.model.calls import MOST_JOBS, AddApp, GetApps, RemoveApp
from balsam_core.model.job import Job
from balsam_core.model.states import State
from balsam_core.operations.execution import operation
from balsam_core.operations.job_rows import read_fields
from balsam_core.operations.small_tables import check_parameters, needs_of, unknown_app
from balsam_core.schema.tables import apps, jobs

if TYPE_CHECKING:
    from sqlalchemy import Select

    from balsam_core.operations.execution import Tx
    from balsam_core.operations.small_tables import AppNeeds


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
        del values["name"]  # it stays, and some engines refuse to write a key that others refer to
        tx.execute(update(apps).where(apps.c.id == app_id).values(values))
        _check_waiting_jobs(tx, app_id, needs_of(app_id, *_templates(_app_from_row(row))), app)
    return app_id


def _templates(app: App) -> tuple[str, str, str]:
    return app.executable, app.preprocess, app.postprocess


def _check_waiting_jobs(tx: Tx, app_id: int, before: AppNeeds, app: App) -> None:
    """Raise Conflict where a job that has not started lacks a parameter that only the new templates ask for.

    Only the first such job is looked for, and none where the templates ask for nothing new.
    """
    needs = needs_of(app_id, *_templates(app))
    if all(new <= old for new, old in zip(needs[1:], before[1:], strict=True)):
        return
    fields = ("id", "app", "args", "parameters", "preprocess", "postprocess")
    last = 0
    while True:

        def waiting(query: Select[Any], after: int = last) -> Select[Any]:
            of_app = jobs.c.app_id == app_id, jobs.c.state.in_(UNSTARTED), jobs.c.id > after
            return query.where(*of_app).order_by(jobs.c.id).limit(MOST_JOBS)

        page = read_fields(tx, fields, waiting)
        for values in page:
            job = Job(**dict(zip(fields, values, strict=True)))
            try:
                check_parameters(job, needs)
            except InvalidInput as err:
                raise Conflict(
                    f"app {app.name!r} can't be replaced, since job {job.id} has not started and would fail: {err}; "
                    f"remove such jobs first, or choose another name"
                ) from None
        if len(page) < MOST_JOBS:
            return
        last = page[-1][0]


UNSTARTED = [State.CREATED, State.AWAITING_PARENTS, State.READY, State.RESTART_READY]


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
