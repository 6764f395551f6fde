"""How calls reach a database: in this process, over a driver."""

from __future__ import annotations
