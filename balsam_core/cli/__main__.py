"""``python -m balsam_core.cli`` is the ``balsam`` command."""

from __future__ import annotations

import sys

from balsam_core.cli import main

sys.exit(main())
