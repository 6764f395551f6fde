"""What a launcher says of itself to others while it runs; nothing of its own depends on it."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from balsam_core.dbdir import launcher_file
from balsam_core.dbdir.launcher_file import LauncherFile
from balsam_core.system.processes import start_of, this_machine

if TYPE_CHECKING:
    from balsam_core.dbdir.directory import DBDir
    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.model.calls import Resources

logger = logging.getLogger(__name__)


def announce(db: DBDir, launcher: int, options: LauncherOptions, resources: Resources) -> None:
    """Write the launcher's file, and remove those of launchers that are gone."""
    limit = options.time_limit
    content = LauncherFile(
        id=launcher,
        machine=this_machine(),
        pid=os.getpid(),
        start=start_of(os.getpid()) or 0.0,
        background=options.background,
        workflow=options.workflow,
        only=None if options.only is None else list(options.only),
        nodes=resources.nodes,
        ranks_per_node=resources.ranks_per_node,
        gpus_per_node=resources.gpus_per_node,
        ends_at=None if limit is None else datetime.now(UTC) + timedelta(seconds=limit),
    )
    try:
        launcher_file.remove_of_the_dead(db)
        launcher_file.write(db, content)
    except OSError as err:
        logger.warning("others can't be told what this launcher does: %s", err)
