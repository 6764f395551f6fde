"""How fast a launcher drains short jobs, against ``xargs`` over the same commands.

Runs 2,000 `/bin/true` by `balsam launcher` (each with a working directory, two output files and durable states in
SQLite) and by `xargs -P2`, in turns, and prints the ratio of the medians of their whole wall times, and what
the launcher's time was spent on. Exits 1 below the required ratio.

On ext4, making files takes ten times as long for five minutes after many were deleted (it searches past their inodes);
xargs makes none. So nothing is deleted before the end, and what bare files cost is printed too.

    python benchmarks/bench_launcher.py [--jobs 2000] [--rounds 3] [--directory DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from balsam_core import Job, open_db

REQUIRED = 0.2
WORKERS = 2
DATABASE = {
    "ClaimJobs",
    "UpdateJobs",
    "PromoteStagedInsert",
    "GetKilledJobs",
    "Prune",
    "CountHeldByOthers",
    "HasClaimable",
    "CountJobs",
    "GetUnfit",
}
DATABASE |= {"CloseLauncher", "RenewLease"}


def balsam(*arguments: str | Path) -> list[str]:
    """Give the command line of the `balsam` that is installed beside this Python."""
    return [str(Path(sys.executable).with_name("balsam")), *map(str, arguments)]


def timed(command: list[str], **settings: object) -> tuple[float, str]:
    """Run a command; give its wall time and output."""
    begin = time.perf_counter()
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **settings)  # type: ignore[call-overload]
    return time.perf_counter() - begin, done.stdout


def launch(place: Path, jobs: int) -> tuple[float, dict[str, float]]:
    """Give the wall time of a launcher that runs the jobs, and what it spent it on."""
    subprocess.run(balsam("init", place, "--db-type", "sqlite"), check=True, stdout=subprocess.DEVNULL)
    with open_db(place) as db:
        db.jobs.add([Job(name="true", workflow="bench", command="/bin/true") for _ in range(jobs)])
    wall, output = timed(
        balsam("-o", "json", "--db", place, "launcher", "--consume-all", "--max-ranks-per-node", str(WORKERS))
    )
    result = json.loads(output)
    with open_db(place) as db:
        assert db.jobs.where(state="JOB_FINISHED").count() == result["finished"] == jobs
    assert len(list((place / "data" / "bench").iterdir())) == jobs
    return wall, result["spent"] | {"launcher": result["seconds"]}


def spent_on(wall: float, spent: dict[str, float]) -> dict[str, float]:
    """Give seconds by kind, in words."""
    database = sum(seconds for kind, seconds in spent.items() if kind in DATABASE)
    rest = spent["launcher"] - database - spent["spawn"] - spent["workdir"] - spent["wait"]
    return {
        "start and end of Python": wall - spent["launcher"],
        "fork and exec, output files": spent["spawn"],
        "working directories": spent["workdir"],
        "database: claims": spent.get("ClaimJobs", 0.0),
        "database: states": spent.get("UpdateJobs", 0.0),
        "database: other": database - spent.get("ClaimJobs", 0.0) - spent.get("UpdateJobs", 0.0),
        "waiting for jobs, collecting them": spent["wait"],
        "the loop itself (Python)": rest,
    }


def bare_files(folder: Path, count: int = 500) -> float:
    """Give the seconds that a directory with two empty files takes when nothing else is done."""
    begin = time.perf_counter()
    for number in range(count):
        place = folder / f"bare{number}"
        place.mkdir()
        (place / "out").touch()
        (place / "err").touch()
    return (time.perf_counter() - begin) / count


def main() -> int:
    """Run the benchmark; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, help="where the databases are made (default: a temporary one)")
    options = parser.parse_args()

    os.environ.pop("BALSAM_DB_PATH", None)
    numbers = "\n".join(map(str, range(options.jobs)))
    ours: list[float] = []
    theirs: list[float] = []
    kinds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=options.directory) as folder:
        bare = bare_files(Path(folder))
        for turn in range(options.rounds):
            wall, spent = launch(Path(folder) / f"db{turn}", options.jobs)
            ours.append(wall)
            kinds.update(spent_on(wall, spent))
            theirs.append(timed(["xargs", f"-P{WORKERS}", "-n1", "/bin/true"], input=numbers)[0])
            print(f"round {turn + 1}: launcher {ours[-1]:.2f} s, xargs {theirs[-1]:.2f} s")

    median, peer = statistics.median(ours), statistics.median(theirs)
    ratio = peer / median
    print(f"{options.jobs} x /bin/true, {WORKERS} at a time, medians of {options.rounds}:")
    print(f"  launcher {median:.2f} s = {options.jobs / median:.0f} jobs/s, xargs {peer:.2f} s")
    print("  where the launcher's time goes, microseconds per job (means):")
    for kind, seconds in kinds.items():
        print(f"    {kind:36}{seconds / options.rounds / options.jobs * 1e6:7.0f}")
    print(f"  a bare directory with two empty files takes {bare * 1e6:.0f} microseconds on this file system now")
    print(f"launcher / xargs -P{WORKERS} throughput: {ratio:.2f} (required: {REQUIRED})")
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
