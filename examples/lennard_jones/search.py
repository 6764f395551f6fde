"""One basin-hopping search for the lowest energy of a Lennard-Jones cluster, from a random start.

Writes the best structure to `coordinates.xyz` in the working directory and its energy to stdout. Reduced units
(epsilon = sigma = 1); the same `--atoms` and `--seed` repeat the same search.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# An ensemble keeps every core busy with its own search; threads inside one would only get in the others' way.
# Read by the BLAS library while numpy is imported, so it stands before that.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from scipy.optimize import minimize

HOPS = 10
TEMPERATURE = 0.8  # of the Metropolis test between minima, in units of epsilon
STEP = 0.4  # largest move of a coordinate in one hop, in units of sigma


def energy_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
    """Give E = 4 sum over pairs (r^-12 - r^-6) and its gradient.

    Args:
        flat: The coordinates x1, y1, z1, x2, ... of the atoms.

    Returns:
        The energy and the gradient, flat like the coordinates.
    """
    points = flat.reshape(-1, 3)
    difference = points[:, None, :] - points[None, :, :]
    squared = np.einsum("ijk,ijk->ij", difference, difference)
    np.fill_diagonal(squared, np.inf)  # an atom has no energy with itself
    inverse6 = squared**-3
    energy = 2.0 * float(np.sum(inverse6 * (inverse6 - 1.0)))  # each pair stands twice in the matrix: 4 / 2
    pull = -24.0 * inverse6 * (2.0 * inverse6 - 1.0) / squared
    gradient = np.einsum("ij,ijk->ik", pull, difference)
    return energy, gradient.ravel()


def quench(flat: np.ndarray, tolerance: float = 1e-5) -> tuple[float, np.ndarray]:
    """Walk downhill to the nearest local minimum; give its energy and coordinates, centred on the origin.

    Args:
        flat: The coordinates to start from.
        tolerance: The largest component of the gradient that counts as zero.
    """
    found = minimize(energy_and_gradient, flat, jac=True, method="L-BFGS-B", options={"gtol": tolerance, "ftol": 0.0})
    points = found.x.reshape(-1, 3)
    return float(found.fun), (points - points.mean(axis=0)).ravel()


def in_sphere(rng: np.random.Generator, count: int, radius: float) -> np.ndarray:
    """Draw points evenly from a sphere round the origin."""
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * (radius * rng.random((count, 1)) ** (1 / 3))


def search(atoms: int, seed: int, hops: int) -> tuple[float, np.ndarray]:
    """Run one basin-hopping search.

    Args:
        atoms: The size of the cluster.
        seed: Picks the random start and the moves.
        hops: The number of moves after the start.

    Returns:
        The lowest energy met and its coordinates, one row an atom.
    """
    rng = np.random.default_rng([atoms, seed])
    radius = 0.75 * atoms ** (1 / 3)  # a little more than the cluster needs
    energy, flat = quench(in_sphere(rng, atoms, radius).ravel())
    best_energy, best = energy, flat
    for _ in range(hops):
        points = flat.reshape(-1, 3) + rng.uniform(-STEP, STEP, (atoms, 3))
        escaped = np.linalg.norm(points, axis=1) > 2 * radius
        points[escaped] = in_sphere(rng, int(escaped.sum()), radius)
        new_energy, new = quench(points.ravel())
        if new_energy < energy or rng.random() < np.exp((energy - new_energy) / TEMPERATURE):
            energy, flat = new_energy, new
        if energy < best_energy:
            best_energy, best = energy, flat
    best_energy, best = quench(best, tolerance=1e-9)
    return best_energy, best.reshape(-1, 3)


def write_xyz(path: Path, points: np.ndarray, comment: str) -> None:
    """Write an xyz file that reads back to the very same numbers."""
    rows = [f"Ar {x!r} {y!r} {z!r}" for x, y, z in points.tolist()]
    path.write_text("\n".join([str(len(rows)), comment, *rows, ""]), encoding="ascii")


def main() -> None:
    """Search as the command line says."""
    parser = argparse.ArgumentParser(description="One basin-hopping search for a Lennard-Jones cluster.")
    parser.add_argument("--atoms", type=int, required=True, help="size of the cluster")
    parser.add_argument("--seed", type=int, required=True, help="picks the random start")
    parser.add_argument("--hops", type=int, default=HOPS, help="moves after the start (default: %(default)s)")
    options = parser.parse_args()
    energy, points = search(options.atoms, options.seed, options.hops)
    write_xyz(Path("coordinates.xyz"), points, f"energy={energy!r} seed={options.seed}")
    print(f"{energy:.6f}")


if __name__ == "__main__":
    main()
