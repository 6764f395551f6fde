"""Compare the minima that the ensemble found with the published ones.

Balsam links the reduce jobs' results into this job's working directory as `minimum.json`, `minimum_17.json`, ...
Writes the table to `table.txt` and to stdout. A missed minimum is a result, not an error: the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

# D. J. Wales and J. P. K. Doye, J. Phys. Chem. A 101, 5111 (1997); Cambridge Cluster Database.
PUBLISHED = {
    7: -16.505384,
    8: -19.821489,
    9: -24.113360,
    10: -28.422532,
    11: -32.765970,
    12: -37.967600,
    13: -44.326801,
}
TOLERANCE = 1e-5  # the published values have six decimals


def remark(difference: float) -> str:
    """Say in a word what a difference from the published minimum means; nothing where there is none."""
    if difference > TOLERANCE:
        return "MISSED"
    return "BELOW THE PUBLISHED MINIMUM: check the potential" if difference < -TOLERANCE else ""


def table(results: list[dict[str, Any]]) -> str:
    """Lay out the results, a line for each size, and count the published minima among them.

    Args:
        results: What the reduce jobs wrote in `minimum.json`.
    """
    lines = [f"{'N':>3} {'found':>12} {'published':>12} {'difference':>11} {'hits':>7}"]
    remarks = []
    for result in sorted(results, key=lambda one: one["atoms"]):
        atoms, energy = result["atoms"], result["energy"]
        difference = energy - PUBLISHED[atoms]
        remarks.append(remark(difference))
        notes = [remarks[-1]] if remarks[-1] else []
        if result["rejected"]:
            notes.append(f"files rejected: {len(result['rejected'])}")
        hits = f"{result['hits']}/{result['searches']}"
        # Adding zero turns -0.0, which would print as "-0.000000", into 0.0.
        shown = round(difference, 6) + 0.0
        line = f"{atoms:>3} {energy:>12.6f} {PUBLISHED[atoms]:>12.6f} {shown:>11.6f} {hits:>7}  {'; '.join(notes)}"
        lines.append(line.rstrip())
    wrong = sum(map(bool, remarks))
    closing = f"{wrong} of {len(results)} missed" if wrong else f"all {len(results)} published minima found"
    return "\n".join([*lines, closing, ""])


def main() -> None:
    """Make the table from the files in the working directory."""
    parser = argparse.ArgumentParser(description="Compare the minima found with the published ones.")
    parser.add_argument("--expect", type=int, help="how many results there must be (default: at least one)")
    options = parser.parse_args()

    results = [json.loads(path.read_bytes()) for path in sorted(Path().glob("minimum*.json"))]
    if not results or options.expect not in {None, len(results)}:
        sys.exit(f"expected {options.expect or 'some'} files minimum*.json from the reduce jobs, found {len(results)}")
    unknown = sorted(result["atoms"] for result in results if result["atoms"] not in PUBLISHED)
    if unknown:
        sys.exit(f"no published minimum to compare with for N = {', '.join(map(str, unknown))}")
    text = table(results)
    Path("table.txt").write_text(text, encoding="ascii")
    print(text, end="")


if __name__ == "__main__":
    main()
