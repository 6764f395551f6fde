"""Shows how a run goes: by a :class:`~balsam_core.launcher.progress.Progress`, and once a minute in the log."""

from __future__ import annotations

import logging
from time import monotonic
from typing import TYPE_CHECKING

from balsam_core.launcher.forecast import COUNTED, Forecast
from balsam_core.launcher.options import LOG_EVERY
from balsam_core.launcher.progress import Progress, Snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from balsam_core.launcher.options import LauncherOptions
    from balsam_core.launcher.retrying_client import RunCall

logger = logging.getLogger(__name__)


class Display:
    """Shows how one launcher's run goes.

    Attributes:
        due: When to show it next, by the monotonic clock.
    """

    def __init__(self, progress: Progress, run: RunCall, options: LauncherOptions) -> None:
        self.due = 0.0
        self._progress = progress
        self._forecast = Forecast(run, options)
        self._started_at = monotonic()
        self._log_at = self._started_at + LOG_EVERY

    def count_if_due(self, counts: Mapping[str, int]) -> None:
        """Count the jobs that are left, where that is due.

        Raises:
            BalsamError: The call failed.
        """
        if monotonic() >= self._forecast.due:
            self._forecast.count(_ended(counts))

    def show(
        self, counts: Mapping[str, int], *, running: int, queued: int, remark: str = "", last: bool = False
    ) -> None:
        """Show it.

        Args:
            counts: Jobs ``finished``, ``failed`` and ``killed``.
            running: Jobs that run.
            queued: Jobs claimed but not started.
            remark: What is unusual.
            last: Whether the run is over.
        """
        now = monotonic()
        self.due = now + self._progress.every
        seconds, ended = now - self._started_at, _ended(counts)
        left = None if last else self._forecast.left(ended)
        snapshot = Snapshot(
            seconds=seconds,
            finished=counts["finished"],
            failed=counts["failed"],
            killed=counts["killed"],
            running=running,
            queued=queued,
            left=left,
            more_left=left is not None and left >= COUNTED,
            seconds_left=None if last else self._forecast.seconds(ended, ended / seconds if seconds else 0.0),
            remark=remark,
        )
        if last or now >= self._log_at:
            self._log_at = now + LOG_EVERY
            logger.info("%s", snapshot.text())
        self.due = min(self.due, self._log_at)
        try:
            (self._progress.show_last if last else self._progress.show)(snapshot)
        except (OSError, ValueError):  # the terminal or pipe is gone, which must not end any job
            logger.info("nobody reads the progress any more", exc_info=True)
            self._progress = Progress()

    def close(self) -> None:
        """Remove what is shown."""
        try:
            self._progress.close()
        except (OSError, ValueError):
            logger.debug("the terminal is gone", exc_info=True)


def _ended(counts: Mapping[str, int]) -> int:
    return counts["finished"] + counts["failed"] + counts["killed"]
