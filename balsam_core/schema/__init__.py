"""Tables, portable types and migrations. The only place that knows how one database differs from another in SQL."""

from __future__ import annotations

__all__ = ["SCHEMA"]

SCHEMA = "0002"
"""The revision that this program works with: the newest in ``migrations/versions``."""
