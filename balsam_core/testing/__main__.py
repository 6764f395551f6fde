"""``python -m balsam_core.testing``."""

from __future__ import annotations

import sys

from balsam_core.testing.command import main

if __name__ == "__main__":
    sys.exit(main())
