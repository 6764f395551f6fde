"""The version of this program, the same for the core and the official plugins."""

from __future__ import annotations

__version__ = "0.1.0"
