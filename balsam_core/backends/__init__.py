"""The plugins: which are installed, how one is looked at and loaded, and the calls of a backend's hooks."""

from __future__ import annotations
