"""``balsam status``: which DB is used and how it stands."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

from balsam_core.cli.command import Session, command, pass_session

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.client.launchers import KnownLauncher
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.watchdog.control import ServerState

RESTART_PATIENCE = 3.0  # seconds for a server that died to come back, before it is told that it doesn't
RESTART_POLL = 0.1


@command(examples=["balsam status", "BALSAM_DB_PATH=~/testdb balsam status -o json"])
@pass_session
def status(session: Session) -> int:
    """Show which DB is used and how it stands.

    Shows the DB directory and who chose it, the database type, the server, the jobs by state, the launchers, and what
    makes writes less safe than promised. Launchers that are proved dead give their jobs back first. Where a published
    server turns out to be dead, to die again and again, or was given up, or its address can't be read, that is all that
    can be shown, and the exit code is that of an error.
    """
    from balsam_core.backends import registry
    from balsam_core.cli.changing import free_of_dead_launchers
    from balsam_core.cli.commands.dbserver import describe_state, status_record
    from balsam_core.dbdir.address import failure as failure_of
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.dbdir.settings import resolve_db_path
    from balsam_core.errors import BalsamError, DBDirError, Unavailable
    from balsam_core.model.calls import CountStates
    from balsam_core.watchdog.control import describe

    resolved = resolve_db_path(session.db)
    with contextlib.suppress(DBDirError):  # open_db() below reports the error, or makes the directory
        directory = DBDir.open(resolved.path)
        state = _describe(directory)
        if state.state in {"stale", "unknown", "failed"} or _fails_again(state):
            record = _make_record(directory, resolved.origin, status_record(directory, state))
            session.printer().one(record, _format_lines(record, describe_state(state)))
            failure = failure_of(directory)
            return Unavailable.exit_code if failure is None else failure.exit_code
    with session.open_db() as db:
        with contextlib.suppress(BalsamError):  # what can only be read can be shown
            free_of_dead_launchers(db, session.printer())
        info = db.info()
        state = describe(db.directory)
        server = status_record(db.directory, state, db.transport)
        record = _make_record(db.directory, resolved.origin, server) | {
            "schema": info.schema,
            "jobs": {name: count for name, count in db.run(CountStates()).get("", {}).items() if count},
            "launchers": [_launcher_record(one) for one in db.launchers()],
            "warnings": registry.load(db.directory.db_type).warnings(db.directory),
        }
    session.printer().one(record, _format_lines(record, describe_state(state)))
    return 0


def _describe(directory: DBDir) -> ServerState:
    """Return how the server stands; a moment later where it is being started again."""
    from balsam_core.watchdog.control import describe

    until = time.monotonic() + RESTART_PATIENCE
    while _fails_again(state := describe(directory)) and time.monotonic() < until:
        time.sleep(RESTART_POLL)
    return state


def _fails_again(state: ServerState) -> bool:
    return state.state == "starting" and state.lease is not None and bool(state.lease.failure)


def _make_record(directory: DBDir, origin: str, server: dict[str, object]) -> dict[str, object]:
    served = server["host"] is not None
    return {
        "path": str(directory.path),
        "source": origin,
        "db_type": directory.db_type,
        "schema": None,
        "server": f"{server['host']}:{server['port']}" if served else None,
        "server_state": server["state"],
        "server_failure": server["failure"],
        "server_since": server["since"] if served else None,
        "clients": server["clients"],
        "calls": server["calls"],
        "jobs": None,
        "launchers": None,
        "warnings": None,
    }


def _format_lines(record: dict[str, Any], server: str) -> Iterator[str]:
    from balsam_core.cli.table import cell
    from balsam_core.cli.text import printable

    yield f"DB         {printable(record['path'])} (chosen by: {record['source']})"
    yield f"type       {record['db_type']}" + ("" if record["schema"] is None else f", schema {record['schema']}")
    since = f", since {cell(record['server_since'])}" if record["server_since"] else ""
    load = "" if record["clients"] is None else f", {record['clients']} clients, {record['calls']} calls"
    yield f"server     {server}{since}{load}"
    yield from (f"warning    {printable(line)}" for line in record["warnings"] or [])
    if record["jobs"] is None:
        return
    states = ", ".join(f"{count} {state}" for state, count in record["jobs"].items())
    yield f"jobs       {sum(record['jobs'].values())}" + (f": {states}" if states else "")
    launchers: list[dict[str, Any]] = record["launchers"]
    yield f"launchers  {sum(one['alive'] for one in launchers)} alive"
    for one in launchers:
        workflow = f", workflow {printable(one['workflow'])}" if one["workflow"] else ""
        background = ", in the background" if one["background"] else ""
        silent = f", silent since {cell(one['seen_at'])}" if one["condition"] in {"silent", "expired"} else ""
        dead = ", dead: its process is gone" if one["condition"] == "dead" else silent
        what = f"{one['id']}: {printable(one['host'])} pid {one['pid']}, {one['jobs']} jobs"
        yield f"           {what}{workflow}{background}{dead}"


def _launcher_record(known: KnownLauncher) -> dict[str, object]:
    """Return what is told of a launcher that has not ended."""
    from msgspec.structs import asdict

    background = known.offer is not None and known.offer.background
    return {**asdict(known.info), "alive": known.runs, "condition": known.condition, "background": background}
