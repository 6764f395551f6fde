"""``balsam dbserver``: the server of a DB, and the watchdog that keeps it running."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from balsam_core.cli.command import Session, command, pass_session
from balsam_core.system.permissions import told_as_db_dir_errors

if TYPE_CHECKING:
    from collections.abc import Iterator

    from balsam_core.dbdir.address import Address
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.transport.base import Transport
    from balsam_core.watchdog.control import ServerState
    from balsam_core.watchdog.options import ServerOptions


@command(
    examples=[
        "balsam dbserver --path=~/testdb",
        "balsam dbserver --host 0.0.0.0",
        "balsam dbserver --status -o json",
        "balsam dbserver --stop",
    ]
)
@click.option("--path", metavar="PATH", help="The DB directory; the same as --db.")
@click.option("--host", metavar="HOST", help="Listen on this name or address; 0.0.0.0 for all.  [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), metavar="N", help="Listen on this port (default: any).")
@click.option("--foreground", is_flag=True, help="Serve in this process until SIGTERM or Ctrl-C.")
@click.option("--no-tls", is_flag=True, help="Let other hosts connect without encryption.")
@click.option("--takeover", is_flag=True, help="Replace a server whose machine is known to be dead.")
@click.option("--stop", is_flag=True, help="Stop the server, on whatever host it runs.")
@click.option("--status", is_flag=True, help="Show how the server stands.")
@click.option("--reset", is_flag=True, help="Remove what a dead server left behind, when nothing else helps.")
@pass_session
def dbserver(
    session: Session,
    *,
    path: str | None,
    host: str | None,
    port: int | None,
    foreground: bool,
    no_tls: bool,
    takeover: bool,
    stop: bool,
    status: bool,
    reset: bool,
) -> None:
    """Start the server of a DB, or stop it.

    A watchdog in the background keeps the server running and publishes where it is in the DB directory; every program
    that uses the DB finds it there. The command returns once the server answers. If one runs already, it is told.

    A bare --stop stops the server of the DB in use; if that has none, and you run just one server, that one.
    """
    if path is not None and session.db is not None and path != session.db:
        raise click.UsageError("--path and --db name different DB directories; use one of them")
    if sum((stop, status, reset, foreground)) > 1:
        raise click.UsageError("use one of --stop, --status, --reset and --foreground at a time")
    if (stop or status or reset) and (host is not None or port is not None or no_tls):
        raise click.UsageError("--host, --port and --no-tls are for starting a server")
    if host is not None and not host.strip():
        raise click.UsageError("--host is empty: name an address of this machine, or leave the option out")
    if takeover and (status or reset):
        raise click.UsageError("--takeover is for starting a server, and for --stop")
    session.db = path if session.db is None else session.db
    if stop:
        with told_as_db_dir_errors():
            _stop_server(session, takeover=takeover)
    elif status:
        _show_status(session)
    elif reset:
        with told_as_db_dir_errors():
            _reset_server(session)
    else:
        from balsam_core.system.network import listening_host
        from balsam_core.watchdog.options import ServerOptions

        listen = listening_host(host) if host else ServerOptions.host
        options = ServerOptions(host=listen, port=port or 0, takeover=takeover, tls=not no_tls)
        if foreground:
            with told_as_db_dir_errors():
                _serve_in_foreground(session, options)
        else:
            _start_server(session, options, named_host=host is not None)


def _start_server(session: Session, options: ServerOptions, *, named_host: bool) -> None:
    from balsam_core.dbdir.lease import LeaseObserver
    from balsam_core.dbdir.publication import is_loopback
    from balsam_core.errors import Conflict
    from balsam_core.system.files import pasted
    from balsam_core.watchdog.control import start

    directory = session.directory(create=True)
    started = start(directory, options)
    server = started.address
    lease = LeaseObserver(directory).observe().lease if started.already else None
    if lease and ((named_host and lease.listen != options.host) or options.port not in {0, server.port}):
        raise Conflict(
            f"the server runs already at {server.endpoint}, started with other options than these: to change them, "
            f"stop it first with balsam dbserver --stop --path={pasted(directory.path)}"
        )
    printer = session.printer()
    verb = "already running at" if started.already else "running at"
    text = f"{verb} {server.endpoint}"
    printer.one(_address_record(directory, server) | {"already": started.already}, text, done=f"the server is {text}")
    if server.details.get("tls") == "off" and not is_loopback(server.host):
        printer.note("Warning: connections from other hosts are not encrypted")


def _serve_in_foreground(session: Session, options: ServerOptions) -> None:
    from balsam_core.cli.stdout import results
    from balsam_core.watchdog.process import run_in_foreground

    directory = session.directory(create=True)

    def ready(server: Address) -> None:
        session.printer().one(_address_record(directory, server), f"running at {server.endpoint}")
        results().flush()

    run_in_foreground(directory, options, ready)


def _stop_server(session: Session, *, takeover: bool) -> None:
    from balsam_core.cli.text import printable
    from balsam_core.watchdog.control import stop

    directory = session.directory() if session.db is not None else _find_served(session)
    done = "none" if directory is None else stop(directory, takeover=takeover)
    where = "" if directory is None else f" of {printable(str(directory.path))}"
    text = {
        "stopped": f"stopped the server{where}",
        "cleaned": f"the server{where} had died; what it left is removed",
        "none": f"no server{where} runs",
    }[done]
    session.printer().one({"path": None if directory is None else str(directory.path), "result": done}, text, done=text)


def _find_served(session: Session) -> DBDir | None:
    """Return the DB whose server a bare ``--stop`` stops; None when no server runs.

    Raises:
        Conflict: Several servers run, and none of them serves the DB in use.
    """
    from balsam_core.cli.text import printable
    from balsam_core.errors import Conflict, DBDirError
    from balsam_core.watchdog import user_servers
    from balsam_core.watchdog.control import has_server

    used = None
    with contextlib.suppress(DBDirError):  # not created yet, so it has no server
        used = session.directory()
    if used is not None and has_server(used):
        return used
    running = user_servers.running()
    if len(running) > 1:
        paths = ", ".join(printable(str(directory.path)) for directory in running)
        raise Conflict(f"several servers run, so say which one to stop with --path: {paths}")
    return running[0] if running else used


def _show_status(session: Session) -> None:
    from balsam_core.watchdog.control import describe

    directory = session.directory()
    state = describe(directory)
    record = status_record(directory, state)
    session.printer().one(record, _format_lines(record, state))


def _reset_server(session: Session) -> None:
    from balsam_core.cli.text import printable
    from balsam_core.watchdog.control import reset

    directory = session.directory()
    reset(directory)
    text = f"reset: no server of {printable(str(directory.path))} is published"
    session.printer().one({"path": str(directory.path), "result": "reset"}, text, done=text)


def status_record(directory: DBDir, state: ServerState, transport: Transport | None = None) -> dict[str, object]:
    """Return what is known about a server: from the watchdog's lease, the published address and the server itself.

    The server is asked through the transport; without one, a transport is opened for that.
    """
    lease, server = state.lease, state.address
    lives = state.state != "stale"
    record: dict[str, object] = {
        "state": state.state,
        "path": str(directory.path),
        "host": server.host if server else None,
        "port": server.port if server else None,
        "protocol": server.protocol if server else None,
        "pid": (server.pid if server else (lease.child_pid or None if lease else None)) if lives else None,
        "watchdog_pid": lease.pid if lease and lives else None,
        "node": lease.node if lease else server.node if server else None,
        "since": state.since,
        "generation": server.generation if server else None,
        "restarts": lease.restarts if lease else None,
        "failure": (lease.failure if lease else "") or state.fault or None,
        "heartbeat_age": state.age,
        "clients": None,
        "calls": None,
    }
    if state.state == "running":
        reported = _ask_status(transport) if transport else _ask_server(directory)
        for name in ("since", "clients", "calls"):
            if (value := getattr(reported, name, None)) is not None:
                record[name] = value
    return record


def _ask_server(directory: DBDir) -> object:
    """Return the server's own status; None when it can't be asked."""
    from balsam_core.backends import registry
    from balsam_core.errors import BalsamError

    try:
        with registry.load(directory.db_type).open_transport(directory) as transport:
            return _ask_status(transport)
    except BalsamError:
        return None


def _ask_status(transport: Transport) -> object:
    ask = getattr(transport, "server_status", None)
    return ask() if ask else None


def _format_lines(record: dict[str, object], state: ServerState) -> Iterator[str]:
    from balsam_core.cli.table import cell
    from balsam_core.cli.text import printable

    yield f"DB        {printable(str(record['path']))}"
    yield f"server    {describe_state(state)}"
    if state.state in {"stopped", "failed", "stale"}:
        return
    if record["node"]:
        pids = f"server pid {record['pid'] or 'none'}, watchdog pid {record['watchdog_pid'] or 'unknown'}"
        yield f"host      {printable(str(record['node']))}: {pids}"
    if record["since"]:
        yield f"since     {cell(record['since'])}, {record['restarts']} restarts, generation {record['generation']}"
    if record["clients"] is not None:
        yield f"clients   {record['clients']}, {record['calls']} calls"


def describe_state(state: ServerState) -> str:
    """Return the state of a server in one line."""
    from balsam_core.dbdir.lease import restarted

    place = state.address.endpoint if state.address else "no address"
    kept = f"{place} is published, but nothing keeps it"
    failure = restarted(state.lease)
    lost = f"running, but {state.fault}; its watchdog publishes it again within seconds"
    return {
        "stopped": "none",
        "running": place + failure,
        "starting": lost if state.fault else f"starting, not ready yet{failure}",
        "stopping": "stopping",
        "failed": f"failed: {state.fault}",
        "stale": f"dead: {state.fault or kept}; start it again with balsam dbserver",
        "unwatched": f"{place}, without a watchdog",
        "unknown": f"unknown: {state.fault}",
    }[state.state]


def _address_record(directory: DBDir, server: Address) -> dict[str, object]:
    return {
        "address": server.endpoint,
        "path": str(directory.path),
        "host": server.host,
        "port": server.port,
        "pid": server.pid,
        "node": server.node,
        "generation": server.generation,
    }
