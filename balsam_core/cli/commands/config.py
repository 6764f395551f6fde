"""``balsam config``: the settings in force."""

from __future__ import annotations

import os

from balsam_core.cli.command import OUTPUT_VARIABLE, Session, group, pass_session


@group()
def config() -> None:
    """Show the settings in force."""


@config.command(examples=["balsam config show"])
@pass_session
def show(session: Session) -> None:
    """Show each setting with its value and where the value comes from."""
    from balsam_core.dbdir.settings import default_db_path, resolve_db_path, settings_file

    file = settings_file()
    default = default_db_path()
    resolved = resolve_db_path(session.db)
    if session.output is not None:
        output_source = "-o"
    else:
        output_source = OUTPUT_VARIABLE if os.environ.get(OUTPUT_VARIABLE, "").strip() else "default"
    rows = [
        ("db", str(resolved.path), resolved.origin),
        ("default_db_path", None if default is None else str(default), "not set" if default is None else str(file)),
        ("output", session.format, output_source),
        ("settings_file", str(file), "present" if file.exists() else "not there"),
    ]
    session.printer().rows(("setting", "value", "source"), rows)
