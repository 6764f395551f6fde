"""Choose the lowest of the structures that the searches for one cluster size found.

Balsam links the searches' files into this job's working directory: `coordinates.xyz` from the first one, and where the
name is taken, `coordinates_17.xyz` with the parent's id. What a file says about its energy is not believed: each
energy is computed again from the coordinates, by other code than the searches', and a file that disagrees is rejected.
Writes `minimum.json` and `minimum.xyz`. Needs nothing but the standard library.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from itertools import combinations
from math import dist
from pathlib import Path

AGREE = 1e-6  # most that a stated energy may be off; the files carry all digits
SAME_MINIMUM = 1e-5  # two structures closer than this in energy count as one; other minima are 0.01 and more away


class RejectedError(Exception):
    """A file that can't count as the result of a search; the message says why."""


def energy_of(points: list[tuple[float, ...]]) -> float:
    """Sum 4 (r^-12 - r^-6) over the pairs."""
    return sum(4 * (r**-12 - r**-6) for r in (dist(a, b) for a, b in combinations(points, 2)))


def checked_energy(path: Path, atoms: int) -> float:
    """Compute the energy of the structure in an xyz file.

    Args:
        path: The file.
        atoms: How many atoms it must hold.

    Raises:
        RejectedError: The file is no such structure, or states another energy than its coordinates have.
    """
    try:
        count, comment, *rows = path.read_text(encoding="ascii").splitlines()
        points = [tuple(float(word) for word in row.split()[1:]) for row in rows]
        declared = int(count)
    except (OSError, ValueError) as err:
        msg = f"can't be read as xyz: {err}"
        raise RejectedError(msg) from err
    if not declared == len(points) == atoms or any(len(point) != 3 for point in points):
        msg = f"doesn't hold the coordinates of {atoms} atoms"
        raise RejectedError(msg)
    stated = re.search(r"\benergy=(\S+)", comment)
    if not stated:
        msg = "states no energy"
        raise RejectedError(msg)
    try:
        energy = energy_of(points)
        agrees = abs(energy - float(stated[1])) <= AGREE  # never true of NaN
    except (ArithmeticError, ValueError) as err:
        msg = f"has no energy: {err}"
        raise RejectedError(msg) from err
    if not agrees:
        msg = f"states the energy {stated[1]}, its coordinates have {energy:.9f}"
        raise RejectedError(msg)
    return energy


def main() -> None:
    """Reduce the files in the working directory."""
    parser = argparse.ArgumentParser(description="Choose the lowest of the structures that the searches found.")
    parser.add_argument("--atoms", type=int, required=True, help="size of the cluster")
    parser.add_argument("--expect", type=int, help="how many files there must be (default: any number)")
    options = parser.parse_args()

    files = sorted(Path().glob("coordinates*.xyz"))
    if options.expect is not None and len(files) != options.expect:
        sys.exit(f"expected {options.expect} files coordinates*.xyz from the searches, found {len(files)}")
    energies: dict[Path, float] = {}
    rejected: dict[str, str] = {}
    for path in files:
        try:
            energies[path] = checked_energy(path, options.atoms)
        except RejectedError as err:
            rejected[path.name] = str(err)
            print(f"rejected: {path} ({path.resolve()}) {err}", file=sys.stderr)
    if not energies:
        sys.exit(f"no usable file coordinates*.xyz among {len(files)} in {Path.cwd()}")

    best = min(energies, key=energies.__getitem__)
    lowest = energies[best]
    hits = sum(energy - lowest < SAME_MINIMUM for energy in energies.values())
    result = {
        "atoms": options.atoms,
        "energy": lowest,
        "searches": len(files),
        "hits": hits,
        "rejected": rejected,
    }
    Path("minimum.json").write_text(json.dumps(result, indent=2) + "\n", encoding="ascii")
    shutil.copyfile(best, "minimum.xyz")
    print(f"N={options.atoms}: {lowest:.6f}, hit by {hits} of {len(files)} searches")


if __name__ == "__main__":
    main()
