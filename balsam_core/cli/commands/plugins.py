"""``balsam plugins``: which database types are installed, and whether they work."""

from __future__ import annotations

import click

from balsam_core.cli.command import Session, group, pass_session

FIELDS = ("db_type", "package", "version", "server", "api", "status", "detail", "remedy", "module", "default")

LONGEST_TRACEBACK = 10_000  # characters


@group()
def plugins() -> None:
    """Show and check the installed database types."""


@plugins.command("list", examples=["balsam plugins list", "balsam plugins list -o json"])
@pass_session
def list_(session: Session) -> None:
    """List the database types, installed ones and missing official ones.

    Nothing heavy is loaded, and a broken plugin harms no other.
    """
    from balsam_core.backends.registry import list_backends

    printer = session.printer()
    found = list_backends()
    if not printer.for_people:
        printer.rows(FIELDS, ([getattr(one, name) for name in FIELDS] for one in found))
        return
    rows = []
    for one in found:
        package = f"{one.package} {one.version}".strip()
        status = ": ".join(part for part in (one.status, one.detail) if part)
        default = " (default)" if one.default and one.status == "ok" else ""
        remedy = f" -> {one.remedy}" if one.remedy else ""
        rows.append((one.db_type, package, one.server, one.api, f"{status}{default}{remedy}"))
    printer.rows(("db type", "package", "server", "api", "status"), rows)


@plugins.command(examples=["balsam plugins check", "balsam plugins check sqlite"])
@click.argument("db_type", metavar="[TYPE]", required=False)
@pass_session
def check(session: Session, db_type: str | None) -> int:
    """Load the plugins with their drivers and show what is wrong.

    Prints the tracebacks of faults and exits with 1 where there is one.
    """
    from balsam_core.backends.registry import check_backends
    from balsam_core.cli.text import printable

    printer = session.printer()
    found = check_backends(db_type)
    names = (*FIELDS, "traceback")
    if printer.for_people:
        rows = [(one.db_type, f"{one.package} {one.version}".strip(), one.status, one.detail) for one in found]
        printer.rows(
            ("db type", "package", "status", "detail"), rows, empty="No backend is installed: pip install balsam-sqlite"
        )
        for one in found:
            if one.traceback:
                lines = map(printable, one.traceback[-LONGEST_TRACEBACK:].rstrip().split("\n"))
                printer.text("\n".join([f"\n{one.db_type}:", *lines]))
            if one.remedy:
                printer.text(f"{one.db_type}: {printable(one.remedy)}")
    else:
        printer.rows(names, ([getattr(one, name) for name in names] for one in found))
    return int(any(one.status != "ok" for one in found) or not found)
