"""What is done to a DB as a whole: create, refresh, back up, restore."""

from __future__ import annotations
