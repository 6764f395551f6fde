"""One job in a launcher: its steps, its files, its commands."""

from __future__ import annotations
