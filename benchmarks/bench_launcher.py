"""How fast a launcher drains short jobs, against programs that only start processes.

Runs 2,000 `/bin/true` by `balsam launcher` (each with a working directory, two output files and durable states; with
the guardian) on SQLite directly, through `balsam dbserver`, and on PostgreSQL; by `xargs -P2`; and by GNU parallel
`--joblog` and HyperQueue where they are installed. All in turns; prints the ratios of the medians of whole wall times,
the processor time and context switches of all processes, which a busy machine changes less, and what the launcher's
time was spent on. Exits 1 where a ratio is below the required one.

On ext4, making files takes ten times as long for five minutes after many were deleted (it searches past their inodes);
the peers make none. So nothing is deleted before the end, and what bare files cost is printed too.

With `--long`, also how busy two workers are kept: by 400 jobs of 0.5 s, and by 1,000 jobs with pre- and postprocess.
That takes four minutes more.

    python benchmarks/bench_launcher.py [--jobs 2000] [--rounds 3] [--ways direct,served] [--long] [--directory DIR]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from backends_tools import BALSAM, running

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise
from balsam_core.system.processes import cpu_seconds

WORKERS = 2
WAYS = {"direct": "sqlite", "served": "sqlite", "postgres": "postgres"}
REQUIRED = {"xargs": 0.7, "parallel": 3.0, "hyperqueue": 1.8}
DATABASE = {
    "ClaimJobs",
    "UpdateJobs",
    "PromoteStagedInsert",
    "GetDelay",
    "GetKilledJobs",
    "Prune",
    "CountHeldByOthers",
    "HasClaimable",
    "CountJobs",
    "GetUnfit",
    "CloseLauncher",
    "RenewLease",
}
HYPERQUEUE = """
import sys
from hyperqueue import Client, Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
count, workers = map(int, sys.argv[1:])
with LocalCluster() as cluster:
    cluster.start_worker(WorkerConfig(cores=workers))
    job = Job()
    for number in range(count):
        job.program(["/bin/true"], stdout=None, stderr=None)
    client = cluster.client()
    client.wait_for_jobs([client.submit(job)])
"""


class Cost(NamedTuple):
    """What a run took: seconds of wall time and of processor time, and context switches, of all its processes."""

    wall: float
    cpu: float
    switches: int


def run_timed(command: list[str], given: str = "") -> tuple[Cost, str]:
    """Run a command; give what it took, with all its descendants, and its output."""
    with tempfile.TemporaryFile("w+") as source, tempfile.TemporaryFile("w+") as output:
        source.write(given)
        source.seek(0)
        begin = time.perf_counter()
        child = subprocess.Popen(command, stdin=source, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - begin
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            sys.exit(f"{command[0]} ended with {child.returncode}")
        output.seek(0)
        cost = Cost(wall, usage.ru_utime + usage.ru_stime, usage.ru_nvcsw + usage.ru_nivcsw)
        return cost, output.read()


def launch(place: Path, jobs: list[Job], server: int | None = None) -> tuple[Cost, dict[str, float]]:
    """Run jobs by a launcher; give what that took, with the server's processor time, and what it spent it on."""
    with open_db(place) as db:
        db.jobs.add(jobs)
        before = db.jobs.where(state="JOB_FINISHED").count()
    server_before = cpu_seconds(server) if server else 0.0
    cost, output = run_timed(
        [*BALSAM, "-o", "json", "--db", str(place), "launcher", "--consume-all", "--max-ranks-per-node", str(WORKERS)]
    )
    result = json.loads(output)
    with open_db(place) as db:
        assert db.jobs.where(state="JOB_FINISHED").count() - before == result["finished"] == len(jobs)
    if server:
        cost = cost._replace(cpu=cost.cpu + cpu_seconds(server) - server_before)
    return cost, result["spent"] | {"launcher": result["seconds"]}


def watchdog_of(place: Path) -> int:
    """Give the process id of the watchdog of a DB's server."""
    status = [*BALSAM, "--db", str(place), "-o", "json", "dbserver", "--status"]
    return int(json.loads(subprocess.run(status, check=True, capture_output=True).stdout)["watchdog_pid"])


def spent_on(wall: float, spent: dict[str, float]) -> dict[str, float]:
    """Give seconds by kind, in words."""
    database = sum(seconds for kind, seconds in spent.items() if kind in DATABASE)
    rest = spent["launcher"] - database - spent["spawn"] - spent["workdir"] - spent["wait"]
    return {
        "start and end of Python": wall - spent["launcher"],
        "asking keepers to start processes": spent["spawn"],
        "working directories": spent["workdir"],
        "database: claims": spent.get("ClaimJobs", 0.0),
        "database: states": spent.get("UpdateJobs", 0.0),
        "database: other": database - spent.get("ClaimJobs", 0.0) - spent.get("UpdateJobs", 0.0),
        "waiting for keepers, hearing them": spent["wait"],
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


def peers(jobs: int) -> dict[str, tuple[list[str], str]]:
    """Give the command line and the input of each peer that is installed."""
    numbers = "\n".join(map(str, range(jobs)))
    found = {"xargs": (["xargs", f"-P{WORKERS}", "-n1", "/bin/true"], numbers)}
    if shutil.which("parallel"):
        joblog = ["parallel", "--will-cite", f"-j{WORKERS}", "--joblog", os.devnull, "/bin/true"]
        found["parallel"] = (joblog, numbers)
    if importlib.util.find_spec("hyperqueue"):
        found["hyperqueue"] = ([sys.executable, "-c", HYPERQUEUE, str(jobs), str(WORKERS)], "")
    return found


def median(costs: list[Cost]) -> Cost:
    """Give the medians."""
    return Cost(*map(statistics.median, zip(*costs, strict=True)))  # type: ignore[arg-type]


def short_jobs(stack: ExitStack, folder: Path, options: argparse.Namespace) -> list[str]:
    """Compare how fast short jobs are run; give the ratios that are too low."""
    costs: dict[str, list[Cost]] = defaultdict(list)
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    servers: dict[str, tuple[Path, int]] = {}
    for way in set(options.ways) - {"direct"}:
        place = stack.enter_context(running(folder / way, WAYS[way]))
        servers[way] = place, watchdog_of(place)
    bare = bare_files(folder)
    for turn in range(options.rounds):
        for way in options.ways:
            place, server = servers.get(way, (folder / f"direct{turn}", 0))
            if not server:
                initialise(place, "sqlite")
            jobs = [Job(name="true", workflow=f"bench{turn}", command="/bin/true") for _ in range(options.jobs)]
            cost, spent = launch(place, jobs, server)
            costs[way].append(cost)
            kinds[way].update(spent_on(cost.wall, spent))
        for peer, (command, given) in peers(options.jobs).items():
            costs[peer].append(run_timed(command, given)[0])
        print(f"round {turn + 1}:", ", ".join(f"{name} {all_[-1].wall:.2f} s" for name, all_ in costs.items()))

    each = options.rounds * options.jobs
    print(f"{options.jobs} x /bin/true, {WORKERS} at a time, medians of {options.rounds}; per job:")
    for name, all_ in costs.items():
        one = median(all_)
        print(
            f"  {name:12}{options.jobs / one.wall:6.0f} jobs/s {one.cpu / options.jobs * 1e6:7.0f} us of processors "
            f"{one.switches / options.jobs:6.1f} context switches"
        )
    for way, spent in kinds.items():
        print(f"  {way}: where the launcher's time goes, us per job (means):")
        for kind, seconds in spent.items():
            print(f"    {kind:36}{seconds / each * 1e6:7.0f}")
    print(f"  a bare directory with two empty files takes {bare * 1e6:.0f} us on this file system now")
    missed = []
    for way in options.ways:
        for peer in peers(0):
            ratio = median(costs[peer]).wall / median(costs[way]).wall
            cpu = median(costs[peer]).cpu / median(costs[way]).cpu
            line = f"{way} / {peer} throughput: {ratio:.2f} (required: {REQUIRED[peer]}); by processor time: {cpu:.2f}"
            print(line)
            missed += [line] if ratio < REQUIRED[peer] else []
    return missed


def long_jobs(folder: Path) -> list[str]:
    """See how busy the workers are kept; give what is too low."""
    missed = []
    hooks: dict[str, Any] = {"preprocess": "sleep 0.05", "postprocess": "sleep 0.05"}
    for what, count, seconds, required, job in (
        ("jobs of 0.5 s", 400, 0.5, 0.97, {"command": "sleep 0.5"}),
        ("jobs of 0.05 s with pre- and postprocess", 1000, 0.15, 0.9, {"command": "sleep 0.05", **hooks}),
    ):
        place = folder / f"long{count}"
        initialise(place, "sqlite")
        _, spent = launch(place, [Job(name="nap", workflow="long", **job) for _ in range(count)])
        ideal = count * seconds / WORKERS
        line = f"{count} {what}: workers busy {ideal / spent['launcher']:.1%} of the time (required: {required:.0%})"
        print(line)
        missed += [line] if ideal / spent["launcher"] < required else []
    return missed


def main() -> int:
    """Run the benchmark; give the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS), type=lambda text: text.split(","))
    parser.add_argument("--long", action="store_true", help="also how busy the workers are kept")
    parser.add_argument("--directory", type=Path, help="where the databases are made (default: a temporary one)")
    options = parser.parse_args()
    os.environ.pop("BALSAM_DB_PATH", None)
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed Balsam is compiled
    os.environ["TQDM_DISABLE"] = "1"  # HyperQueue's progress bar
    with tempfile.TemporaryDirectory(dir=options.directory) as folder, ExitStack() as stack:
        missed = short_jobs(stack, Path(folder), options)
        if options.long:
            missed += long_jobs(Path(folder))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
