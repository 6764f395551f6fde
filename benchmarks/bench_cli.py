"""How fast the command line starts and lists, as ratios measured in one run.

    python benchmarks/bench_cli.py [--jobs 1000000] [--rounds 21]

``balsam --help`` and ``balsam plugins list`` against ``python -c "import click"``; ``balsam ls`` and other commands
on a large database against the same on one of 100 jobs. The commands of a comparison take turns, so that a busy
machine slows all of them; medians of wall time. All run from bytecode, as installed packages do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from balsam_core import Job, open_db
from balsam_core.admin.initialise import initialise

SMALL = 100  # jobs
WORKFLOWS = 50
BALSAM = [sys.executable, "-m", "balsam_core.cli"]
LISTINGS = {
    "ls": (["ls"], 1.5),
    "ls --wf wf-7": (["ls", "--wf", "wf-7"], None),
    "ls --state READY": (["ls", "--state", "READY"], None),
    "ls --limit 10 -o json": (["ls", "--limit", "10", "-o", "json"], None),
    "show last": (["show", "last"], None),
    "status": (["status"], None),
}


def fill(path: Path, count: int) -> None:
    """Make a database with so many jobs."""
    initialise(path)
    with open_db(path) as db:
        db.jobs.add(
            Job(name=f"job-{n}", workflow=f"wf-{n % WORKFLOWS}", command="true", parameters={"x": n})
            for n in range(count)
        )


def medians(
    commands: dict[str, list[str]], rounds: int, bytecode: Path, databases: dict[str, Path] | None = None
) -> dict[str, float]:
    """Run the commands in turns and return the median seconds of each; the first turn only warms up.

    Args:
        commands: The commands by name.
        rounds: How often each runs.
        bytecode: Where the bytecode of all modules is kept.
        databases: The DB directory of each command that has one.
    """
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    plain["PYTHONPYCACHEPREFIX"] = str(bytecode)
    env = {name: {**plain, "BALSAM_DB_PATH": str((databases or {}).get(name, ""))} for name in commands}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for turn in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(
                command,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=env[name],
            )
            if turn:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(taken) for name, taken in times.items()}


def report(what: str, peer: str, taken: float, peer_taken: float, allowed: float | None) -> bool:
    """Print one ratio; return whether it is allowed."""
    ratio = taken / peer_taken
    verdict = "" if allowed is None else f"  allowed {allowed:.1f}x: {'ok' if ratio <= allowed else 'TOO SLOW'}"
    print(f"{what:<24} {ratio:5.2f}x of {peer}  ({taken * 1000:.0f} ms against {peer_taken * 1000:.0f} ms){verdict}")
    return allowed is None or ratio <= allowed


def main() -> int:
    """Measure and print; the exit code says whether all budgets are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000, help="jobs in the large database")
    parser.add_argument("--rounds", type=int, default=21, help="times that each command runs")
    options = parser.parse_args()

    peer = 'python -c "import click"'
    commands = {
        peer: [sys.executable, "-c", "import click"],
        "--help": [*BALSAM, "--help"],
        "plugins list": [*BALSAM, "plugins", "list"],
    }
    with tempfile.TemporaryDirectory(prefix="balsam-bench-") as folder:
        bytecode = Path(folder) / "bytecode"
        taken = medians(commands, options.rounds, bytecode)
        kept = [report(f"balsam {name}", peer, taken[name], taken[peer], 2.5) for name in ("--help", "plugins list")]

        sizes = {f"{SMALL} jobs": SMALL, f"{options.jobs} jobs": options.jobs}
        paths = {name: Path(folder) / str(size) for name, size in sizes.items()}
        for name, size in sizes.items():
            fill(paths[name], size)
        small, large = sizes
        for name, (words, allowed) in LISTINGS.items():
            rounds = options.rounds if allowed else max(3, options.rounds // 4)
            taken = medians({key: [*BALSAM, *words] for key in sizes}, rounds, bytecode, paths)
            kept.append(report(f"balsam {name}", small, taken[large], taken[small], allowed))
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
