"""The memory of a launcher with a hundred times as many waiting jobs, against few; same run.

A launcher of two slots runs 200 of so many `/bin/true`, while the others wait: half of them to be claimed, half of them
for a parent. Its peak memory is read before it is stopped.

    python benchmarks/bench_waiting.py [--jobs 100000] [--db-types sqlite,postgres,mysql]
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from backends_tools import BALSAM, running

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUIRED = 1.2
RUN = 200  # jobs
PATIENCE = 300.0  # seconds


def job_stream(count: int) -> Iterator[Job]:
    """Give jobs, of which half wait for the first, which no launcher of one node can run."""
    top = Job(command="/bin/true", workflow="waiting", name="top", num_nodes=2)
    yield top
    for number in range(1, count):
        yield Job(command="/bin/true", workflow="waiting", name=str(number), parents=[top] if number % 2 else [])


def peak(path: Path, count: int) -> float:
    """Return the peak memory, in MiB, of a launcher on a DB with so many waiting jobs."""
    with open_db(path) as db:
        db.jobs.add(job_stream(count))
        words = [*BALSAM, "--db", path, "launcher", "--consume-all", "--max-ranks-per-node", "2"]
        with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as launcher:
            give_up_at = time.monotonic() + PATIENCE
            while db.jobs.where(state="JOB_FINISHED").count() < RUN:
                if launcher.poll() is not None or time.monotonic() > give_up_at:
                    sys.exit(f"the launcher did not run {RUN} jobs")
                time.sleep(0.1)
            status = Path(f"/proc/{launcher.pid}/status").read_text()
            launcher.terminate()
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) / 1024


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--db-types", default="sqlite,postgres,mysql", type=lambda text: text.split(","))
    parser.add_argument("--directory", default="/var/tmp", help="on a disk (default: /var/tmp)")  # noqa: S108
    options = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory(prefix="balsam-bench-", dir=options.directory) as place, ExitStack() as stack:
        for db_type in options.db_types:
            peaks = []
            for count in (options.jobs // 100, options.jobs):
                path = Path(place, f"{db_type}-{count}")
                if db_type == "sqlite":
                    initialise(path, db_type)
                else:
                    stack.enter_context(running(path, db_type))
                peaks.append(peak(path, count))
            small, large = peaks
            print(
                f"{db_type}: launcher's peak memory {small:.0f} MiB with {options.jobs // 100} jobs waiting, "
                f"{large:.0f} MiB with {options.jobs}; ratio {large / small:.2f} (at most {REQUIRED})",
                flush=True,
            )
            missed += [db_type] if large / small > REQUIRED else []
    if missed:
        sys.exit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
