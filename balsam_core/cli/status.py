"""``balsam status``: which DB is used and how it stands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from balsam_core.cli.command import command, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.cli.command import Session
    from balsam_core.model.calls import LauncherInfo

__all__ = ["status"]


@command(examples=["balsam status", "BALSAM_DB_PATH=~/testdb balsam status -o json"])
@pass_session
def status(session: Session) -> None:
    """Show which DB is used and how it stands.

    Shows the DB directory and who chose it, the database type, the server, the jobs by state, and the launchers.
    """
    from balsam_core import address
    from balsam_core.model.calls import CountStates, GetLaunchers
    from balsam_core.settings import resolve_db_path

    resolved = resolve_db_path(session.db)
    with session.open_db() as db:
        info = db.info()
        server = address.read(db.directory)
        states = {state: number for state, number in db.run(CountStates()).get("", {}).items() if number}
        launchers = db.run(GetLaunchers())
        record: dict[str, object] = {
            "path": str(db.path),
            "source": resolved.origin,
            "db_type": db.directory.db_type,
            "schema": info.schema,
            "server": f"{server.host}:{server.port}" if server else None,
            "jobs": states,
            "launchers": launchers,
        }
    session.printer().one(record, _lines(record, states, launchers))


def _lines(record: dict[str, object], states: dict[str, int], launchers: list[LauncherInfo]) -> Iterator[str]:
    from balsam_core.cli.table import cell
    from balsam_core.cli.text import printable

    yield f"DB         {printable(str(record['path']))} (chosen by: {record['source']})"
    yield f"type       {record['db_type']}, schema {record['schema']}"
    yield f"server     {record['server'] or 'none'}"
    total = sum(states.values())
    yield f"jobs       {total}" + (": " if total else "") + ", ".join(f"{n} {state}" for state, n in states.items())
    alive = [one for one in launchers if one.alive]
    yield f"launchers  {len(alive)} alive"
    for one in launchers:
        dead = "" if one.alive else ", silent since " + cell(one.seen_at)
        workflow = f", workflow {printable(one.workflow)}" if one.workflow else ""
        yield f"           {one.id}: {printable(one.host)} pid {one.pid}, {one.jobs} jobs{workflow}{dead}"
