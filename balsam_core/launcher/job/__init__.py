"""One job in a launcher: its lifecycle, its files, its command lines."""

from __future__ import annotations
