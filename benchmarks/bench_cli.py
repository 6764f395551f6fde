"""How long the command line takes to start, against ``python -c "import click"`` in the same run."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

BALSAM = str(Path(sys.executable).with_name("balsam"))
PEER = [sys.executable, "-c", "import click"]
COMMANDS = {"--help": ["--help"], "plugins list": ["plugins", "list"]}
TARGET = 2.5


def seconds(command: list[str]) -> float:
    """Return the wall time of a command."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    times: dict[str, list[float]] = {name: [] for name in ("peer", *COMMANDS)}
    for _ in range(rounds + 1):
        times["peer"].append(seconds(PEER))
        for name, words in COMMANDS.items():
            times[name].append(seconds([BALSAM, *words]))
    peer = statistics.median(times["peer"][1:])
    print(f'python -c "import click": {peer * 1e3:.0f} ms')
    for name in COMMANDS:
        ours = statistics.median(times[name][1:])
        print(f"balsam {name}: {ours * 1e3:.0f} ms; ratio {ours / peer:.2f} (at most {TARGET})")


if __name__ == "__main__":
    main()
