"""``balsam`` with launcher leases of some seconds: ``python short_leases.py SECONDS WORDS``."""

from __future__ import annotations

import sys

from balsam_core.cli import main
from balsam_core.client.launchers import RENEWALS
from balsam_core.launcher import options

if __name__ == "__main__":
    options.LEASE_SECONDS = float(sys.argv[1])
    options.RENEW_EVERY = options.LEASE_SECONDS / RENEWALS
    sys.exit(main(sys.argv[2:]))
