"""Plugins of a test's own making: a dist-info folder on ``PYTHONPATH`` is all that installs a distribution.

``ENGINE`` is the source of a complete backend on the SQLite engine, to which a test appends what it is about.
"""

from __future__ import annotations

import os
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ENGINE", "PluginSite"]

ENGINE = """
from balsam_core.plugin import DBType, NativeTransport, ServerPolicy, hookimpl
from balsam_sqlite import backend as real

@hookimpl
def balsam_db_type():
    return DBType(name="{name}", title="Toy", server=ServerPolicy.NONE, plugin_api=1)

@hookimpl
def balsam_init_db(db, options):
    return real.balsam_init_db(db, options)

@hookimpl
def balsam_start_server(db, host, port):
    return real.balsam_start_server(db, host, port, True)

@hookimpl
def balsam_open_transport(db):
    from balsam_sqlite.engine import make_engine
    from balsam_sqlite.errors import is_retryable

    return NativeTransport(make_engine(db, "writer"), is_retryable=is_retryable)

@hookimpl
def balsam_create_engine(db, role):
    return real.balsam_create_engine(db, role)
"""


class PluginSite:
    """A folder of distributions.

    Args:
        path: The folder; it may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)

    @property
    def environment(self) -> dict[str, str]:
        """What a child process needs to have the plugins."""
        return {"PYTHONPATH": os.pathsep.join([str(self.path), *filter(None, [os.environ.get("PYTHONPATH")])])}

    def add(
        self,
        name: str,
        code: str | None = None,
        *,
        more: str = "",
        group: str = "balsam.backends",
        package: str = "",
        version: str = "1.0",
        entry_points: str | bytes | None = None,
        metadata: str | None = None,
    ) -> None:
        """Install a distribution with one plugin.

        Args:
            name: Name of its entry point, of a backend the db type.
            code: Source of its module; None for ``ENGINE``.
            more: Source appended to it.
            group: Group of its entry point.
            package: Name of the distribution; ``acme-`` and the name by default.
            version: Its version.
            entry_points: The text of ``entry_points.txt``, where it isn't the usual one.
            metadata: The same for ``METADATA``.
        """
        package = package or f"acme-{name}"
        folder = package.replace("-", "_")
        module = f"{folder}_plugin"
        info = self.path / f"{folder}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n" if metadata is None else metadata
        (info / "METADATA").write_text(text)
        points = f"[{group}]\n{name} = {module}\n" if entry_points is None else entry_points
        (info / "entry_points.txt").write_bytes(points if isinstance(points, bytes) else points.encode())
        source = ENGINE.replace("{name}", name) if code is None else textwrap.dedent(code)
        (self.path / f"{module}.py").write_text(f"{source}\n{textwrap.dedent(more)}")
