"""The half that runs in the write server."""

from __future__ import annotations
