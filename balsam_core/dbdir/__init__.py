"""The DB directory: what lies in it, where its server is published, which one a command means."""

from __future__ import annotations
