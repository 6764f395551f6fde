"""What the operating system gives: files, processes, signals, locks, networks. Knows nothing of Balsam."""

from __future__ import annotations
