"""``balsam plugins``: which database types and other plugins are installed, and whether they work."""

from __future__ import annotations

import click

from balsam_core.cli.command import Session, group, pass_session

FIELDS = ("name", "kind", "package", "version", "server", "api", "status", "detail", "remedy", "module", "default")

LONGEST_TRACEBACK = 10_000  # characters


@group()
def plugins() -> None:
    """Show and check the installed plugins.

    They add database types and MPI kinds.
    """


@plugins.command("list", examples=["balsam plugins list", "balsam plugins list -o json"])
@pass_session
def list_(session: Session) -> None:
    """List the plugins: database types, installed ones and missing official ones, and MPI kinds.

    Nothing heavy is loaded, and a broken plugin harms no other.
    """
    from balsam_core.backends.listing import list_plugins

    printer = session.printer()
    found = list_plugins()
    if not printer.for_people:
        printer.rows(FIELDS, ([getattr(one, name) for name in FIELDS] for one in found))
        return
    rows = []
    for one in found:
        package = f"{one.package} {one.version}".strip()
        status = ": ".join(part for part in (one.status, one.detail) if part)
        default = " (default)" if one.default and one.status == "ok" else ""
        remedy = f" -> {one.remedy}" if one.remedy else ""
        rows.append((one.name, one.kind, package, one.server, one.api, f"{status}{default}{remedy}"))
    printer.rows(("name", "kind", "package", "server", "api", "status"), rows)


@plugins.command(examples=["balsam plugins check", "balsam plugins check sqlite"])
@click.argument("name", metavar="[NAME]", required=False)
@pass_session
def check(session: Session, name: str | None) -> int:
    """Load the plugins with their drivers and show what is wrong.

    Prints the tracebacks of faults and exits with 1 where there is one.
    """
    from balsam_core.backends.listing import check_plugins
    from balsam_core.cli.text import printable

    printer = session.printer()
    found = check_plugins(name)
    names = (*FIELDS, "traceback")
    if printer.for_people:
        rows = [(one.name, one.kind, f"{one.package} {one.version}".strip(), one.status, one.detail) for one in found]
        titles = ("name", "kind", "package", "status", "detail")
        printer.rows(titles, rows, empty="No plugin is installed: pip install balsam-sqlite")
        for one in found:
            if one.traceback:
                lines = map(printable, one.traceback[-LONGEST_TRACEBACK:].rstrip().split("\n"))
                printer.text("\n".join([f"\n{one.name}:", *lines]))
            if one.remedy:
                printer.text(f"{one.name}: {printable(one.remedy)}")
    else:
        printer.rows(names, ([getattr(one, name) for name in names] for one in found))
    return int(any(one.status != "ok" for one in found) or not found)
