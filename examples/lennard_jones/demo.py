"""Run the Lennard-Jones ensemble through a new Balsam database: what `make demo` does.

For each cluster size from 7 to 13 atoms, twenty searches from random starts and one job that reduces their results; at
the end one job that compares the seven minima with the published ones.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from balsam_core import App, Job, open_db

HERE = Path(__file__).resolve().parent
WORKFLOW = "lj"
SIZES = range(7, 14)
# One search finds its minimum with a probability of 0.67 (N = 10, 11) to 1.0 (N = 8); twenty all miss it once in 10^9.
SEEDS = range(1, 21)


def program() -> str:
    """Give the name under which this `balsam` can be typed here: alone where PATH finds it."""
    ours = Path(sys.executable).with_name("balsam")
    found = shutil.which("balsam")
    if found and Path(found) == ours:
        return "balsam"
    return str(ours.relative_to(Path.cwd())) if ours.is_relative_to(Path.cwd()) else str(ours)


def balsam(*arguments: str | Path) -> list[str]:
    """Give the command line of the `balsam` that is installed beside this Python."""
    return [str(Path(sys.executable).with_name("balsam")), *map(str, arguments)]


def say(text: str) -> None:
    """Print at once, so that the line stands before what the next process prints."""
    print(text, flush=True)


def unused(path: Path) -> Path:
    """Give the path itself, or where something is there already, the first free one of `path-2`, `path-3`, ..."""
    free, number = path, 1
    while free.exists() or free.is_symlink():
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def apps() -> list[App]:
    """Describe the three programs; each placeholder is filled from a job's parameters."""

    def template(script: str, options: str) -> str:
        return f"{shlex.join([sys.executable, str(HERE / script)])} {options}"

    return [
        App("lj-search", template("search.py", "--atoms {atoms} --seed {seed}")),
        App("lj-reduce", template("reduce.py", "--atoms {atoms} --expect {expect}")),
        App("lj-table", template("table.py", "--expect {expect}")),
    ]


def ensemble() -> list[Job]:
    """Describe the jobs, parents first; the table is the last."""
    jobs: list[Job] = []
    reduces: list[Job] = []
    for atoms in reversed(SIZES):  # the longest searches first, so that both cores end together
        searches = [
            Job(
                name=f"lj{atoms}-seed{seed}",
                workflow=WORKFLOW,
                app="lj-search",
                parameters={"atoms": atoms, "seed": seed},
            )
            for seed in SEEDS
        ]
        reduce = Job(
            name=f"lj{atoms}-minimum",
            workflow=WORKFLOW,
            app="lj-reduce",
            parameters={"atoms": atoms, "expect": len(searches)},
            parents=searches,
            input_files=["*.xyz"],
        )
        jobs += [*searches, reduce]
        reduces.append(reduce)
    table = Job(
        name="table",
        workflow=WORKFLOW,
        app="lj-table",
        parameters={"expect": len(reduces)},
        parents=reduces,
        input_files=["*.json"],
    )
    return [*jobs, table]


def launch(path: Path) -> int:
    """Run a launcher until no job is left and give its exit code; a request to stop is left to the launcher."""
    with subprocess.Popen(balsam("--db", path, "launcher", "--consume-all")) as launcher:
        signal.signal(signal.SIGTERM, lambda *_: launcher.terminate())
        signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends Ctrl-C to the launcher as well
        try:
            return launcher.wait()
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)


def report(path: Path, table: Job) -> tuple[int, int]:
    """Print the final table if there is one; give the numbers of jobs that finished and that failed."""
    with open_db(path) as db:
        jobs = db.jobs.where(workflow=WORKFLOW)
        finished, failed = (jobs.where(state=state).count() for state in ("JOB_FINISHED", "FAILED"))
        result = db.workdir(table) / "table.txt"
    if result.exists():
        say("\n" + result.read_text(encoding="ascii"))
    return finished, failed


def main() -> int:
    """Run the demo; give the exit code."""
    parser = argparse.ArgumentParser(description="Run the Lennard-Jones ensemble through a new Balsam database.")
    parser.add_argument("--db", type=Path, default=Path("demo_db"), help="DB directory to make (default: %(default)s)")
    parser.add_argument("--db-type", default="sqlite3", help="its type; others are served (default: %(default)s)")
    chosen = parser.parse_args()
    wanted = chosen.db
    if find_spec("scipy") is None:
        sys.exit(f"the searches need scipy: {sys.executable} -m pip install -r {HERE / 'requirements.txt'}")
    started = time.monotonic()
    path = unused(wanted)
    if path != wanted:
        say(f"{wanted} is there already and stays as it is; this run makes {path}")
    init = subprocess.run(balsam("init", path, "--db-type", chosen.db_type), check=False)
    if init.returncode:
        return init.returncode
    if chosen.db_type.startswith("sqlite"):
        return run(path, started)
    server = subprocess.run(balsam("dbserver", "--path", path), check=False)
    if server.returncode:
        return server.returncode
    try:
        return run(path, started)
    finally:
        subprocess.run(balsam("dbserver", "--stop", "--path", path), check=False)


def run(path: Path, started: float) -> int:
    """Run the ensemble through a new DB; give the exit code."""
    jobs = ensemble()
    with open_db(path) as db:
        db.apps.add(*apps())
        db.jobs.add(jobs)
    say(f"added {len(jobs)} jobs: {len(SEEDS)} searches for each N = {SIZES[0]}..{SIZES[-1]}, and what follows them")

    code = launch(path)
    subprocess.run(balsam("--db", path, "ls", "--by-states"), check=False)
    finished, failed = report(path, jobs[-1])
    look = f"{shlex.quote(program())} --db {shlex.quote(str(path))}"
    if failed:
        say(f"{failed} of {len(jobs)} jobs failed. See why:\n  {look} ls --state FAILED\n  {look} show ID")
    if left := len(jobs) - finished - failed:
        say(f"{left} of {len(jobs)} jobs have not run. To go on:\n  {look} launcher --consume-all")
    if failed or left:
        return code or 1
    say(f"{len(jobs)} jobs in {time.monotonic() - started:.0f} s. Look further:")
    say(f"  {look} ls\n  {look} ls --name table --history\n  {look} show {jobs[-1].id}\n  ls {path}/data/{WORKFLOW}")
    return code


if __name__ == "__main__":
    sys.exit(main())
