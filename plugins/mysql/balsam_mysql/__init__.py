"""MySQL and MariaDB backend of Balsam. The hooks are in :mod:`balsam_mysql.backend`."""

from __future__ import annotations

__version__ = "0.1.0"
