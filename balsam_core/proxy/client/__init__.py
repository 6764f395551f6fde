"""The half of the protocol that runs in every program that uses a write server."""

from __future__ import annotations
