"""The half of the protocol that runs in the write server's process."""

from __future__ import annotations
