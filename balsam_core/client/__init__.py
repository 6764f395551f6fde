"""The Python API: an open DB, its jobs, and the insertion of many."""

from __future__ import annotations
