"""What programs hold: an open DB, its jobs, and insertion of many."""

from __future__ import annotations
