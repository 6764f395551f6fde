"""Journals of launchers that don't exist."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from balsam_core.dbdir.launcher_journal import Head, Offer, journal_path
from balsam_core.system.processes import Machine, this_machine

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir


def write_journal(
    directory: DBDir,
    launcher: int,
    *,
    pid: int,
    start: float = 1.0,
    machine: Machine | None = None,
    **offer: Any,
) -> None:
    """Write what a launcher with this process would say of itself; its guardian is the same process."""
    where = machine or this_machine()
    head = Head(machine=where, launcher=pid, launcher_start=start, guardian=pid, guardian_start=start, mark="none")
    lines = [b"head " + msgspec.json.encode(head), b"offer " + msgspec.json.encode(Offer(**offer)), b""]
    journal_path(directory, launcher).write_bytes(b"\n".join(lines))
