"""``python -m balsam_core.watchdog``."""

from __future__ import annotations

import sys

from balsam_core.watchdog.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
