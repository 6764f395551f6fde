"""Tables, portable types and migrations. The only place that knows how one database differs from another in SQL."""

from __future__ import annotations

from pathlib import Path

_VERSIONS = Path(__file__).with_name("migrations") / "versions"

SCHEMA = max(file.name[:4] for file in _VERSIONS.glob("[0-9]*.py"))
"""The revision that this program works with: the newest in ``migrations/versions``."""
