"""The backend plugins: which are installed, how one is loaded, and the calls of its hooks."""

from __future__ import annotations
