"""The small tables that jobs refer to: workflows, resource classes, apps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import bindparam, insert, select

from balsam_core.errors import InvalidInput, NotFound
from balsam_core.model.command import placeholders, split
from balsam_core.operations.stored_fields import RESOURCES
from balsam_core.schema.prepared import Prepared
from balsam_core.schema.tables import apps, resource_classes, workflows

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import Column, Table

    from balsam_core.model.job import Job
    from balsam_core.operations.execution import Tx

_EXACT_MINUTES = 240
_DAY_MINUTES = 1440


def workflow_ids(tx: Tx, names: set[str]) -> dict[str, int]:
    """Return the ids of workflows by name; new ones are created."""
    found = _ids_by_name(tx, workflows, workflows.c.name, names)
    missing = sorted(names - found.keys())
    if missing:
        first = tx.take_ids("workflows", len(missing))
        found.update((name, first + i) for i, name in enumerate(missing))
        tx.execute(insert(workflows), [{"id": found[name], "name": name} for name in missing])
    return found


def _ids_by_name(tx: Tx, table: Table, column: Column[str], names: Iterable[str]) -> dict[str, int]:
    """Return the ids of those rows that there are."""
    found: dict[str, int] = {}
    unknown = []
    for name in names:
        known = None if tx.cache is None else tx.cache.get((table.name, name))
        if known is None:
            unknown.append(name)
        else:
            found[name] = known
    if unknown:
        # One by one where there are few, as nearly always: a list of texts can't be prepared.
        if len(unknown) <= FEW:
            query = _ID_BY_NAME[table.name]
            rows = [(name, tx.run_prepared(query, {"wanted": name}).fetchone()) for name in unknown]
            read = {name: row[0] for name, row in rows if row is not None}
        else:
            read = {row[1]: row[0] for row in tx.execute(select(table.c.id, column).where(column.in_(unknown)))}
        if tx.cache is not None:
            for name, row_id in read.items():
                tx.cache.put((table.name, name), row_id)
        found.update(read)
    return found


FEW = 4
_ID_BY_NAME = {
    column.table.name: Prepared(select(column.table.c.id).where(column == bindparam("wanted")))
    for column in (workflows.c.name, resource_classes.c.shape)
}


def _round_up(minutes: int) -> int:
    """Round a wall time up, so that the number of classes stays small: exact to 4 h, quarters of an hour, hours."""
    step = 1 if minutes <= _EXACT_MINUTES else 15 if minutes <= _DAY_MINUTES else 60
    return -(-minutes // step) * step


Shape = tuple[float, ...]


def shapes_of(given: Mapping[str, Sequence[Any]]) -> list[Shape]:
    """Return what the jobs' resource classes are made of: :data:`RESOURCES`, then minutes; of columns by field."""
    columns = [given[name] for name in RESOURCES]
    columns.append([_round_up(minutes) if minutes else 0 for minutes in given["wall_time_minutes"]])
    return list(zip(*columns, strict=True))


def class_ids(tx: Tx, shapes: set[Shape]) -> dict[Shape, int]:
    """Return the ids of resource classes by shape; new ones are created."""
    texts = {",".join(str(int(part)) if part == int(part) else repr(part) for part in one): one for one in shapes}
    known = _ids_by_name(tx, resource_classes, resource_classes.c.shape, texts)
    found = {texts[text]: class_id for text, class_id in known.items()}
    missing = sorted(text for text, one in texts.items() if one not in found)
    if missing:
        first = tx.take_ids("resource_classes", len(missing))
        columns = (*RESOURCES, "wall_minutes")
        rows = []
        for class_id, text in enumerate(missing, first):
            rows.append({"id": class_id, "shape": text} | dict(zip(columns, texts[text], strict=True)))
            found[texts[text]] = class_id
        tx.execute(insert(resource_classes), rows)
    return found


class AppNeeds(NamedTuple):
    """An app's id and the parameters that its templates ask for."""

    id: int
    executable: set[str]
    preprocess: set[str]
    postprocess: set[str]


def app_needs(tx: Tx, names: Iterable[str]) -> dict[str, AppNeeds]:
    """Return ids and parameters of apps by name.

    Raises:
        NotFound: An app doesn't exist.
    """
    found: dict[str, AppNeeds] = {}
    for name in names:
        needs: AppNeeds | None = None if tx.cache is None else tx.cache.get(("apps", name))
        if needs is None:
            row = tx.run_prepared(_APP_BY_NAME, {"wanted": name}).fetchone()
            if row is None:
                raise unknown_app(tx, name)
            needs = needs_of(*row)
            if tx.cache is not None:
                tx.cache.put(("apps", name), needs)
        found[name] = needs
    return found


def needs_of(app_id: int, *templates: str | None) -> AppNeeds:
    """Return what the templates of an app ask for: executable, preprocess, postprocess."""
    return AppNeeds(app_id, *(placeholders(split(text or "", what="app")) for text in templates))


_APP_BY_NAME = Prepared(
    select(apps.c.id, apps.c.executable, apps.c.preprocess, apps.c.postprocess).where(
        apps.c.name == bindparam("wanted")
    )
)


def unknown_app(tx: Tx, name: str) -> NotFound:
    """Return the error for a name that no app has, with the names that there are."""
    import difflib

    names = list(tx.execute(select(apps.c.name).order_by(apps.c.name)).scalars())
    near = difflib.get_close_matches(name, names, 1)
    shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")  # noqa: PLR2004
    hint = f"did you mean {near[0]!r}?" if near else f"apps are: {shown}" if names else "none is defined yet"
    return NotFound(f"there is no app {name!r}; {hint} (define one with: balsam app --name ... --executable ...)")


def check_parameters(job: Job, app: AppNeeds) -> None:
    """Raise InvalidInput where the app's templates ask for a parameter that the job doesn't give."""
    needs = app.executable
    if job.args:
        needs = needs | placeholders(split(job.args, what="args"))
    if app.preprocess and not job.preprocess:
        needs = needs | app.preprocess
    if app.postprocess and not job.postprocess:
        needs = needs | app.postprocess
    if not needs <= job.parameters.keys():
        missing = ", ".join(sorted(needs - job.parameters.keys()))
        given = ", ".join(sorted(job.parameters)) or "none"
        raise InvalidInput(f"app {job.app!r} needs the parameters {missing} (given: {given})")
