"""The half of the write server's protocol that runs in every program."""

from __future__ import annotations
