"""A program of several ranks, compiled for the MPI implementations of this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["IMPLEMENTATIONS", "compile_ranks"]

IMPLEMENTATIONS = ("openmpi", "mpich")

_SOURCE = r"""
#define _GNU_SOURCE
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
/* What each rank does: "say", "sleep SECONDS", "abort" (the second rank, with 7). */
int main(int argc, char **argv) {
    int rank, count, sum;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &count);
    MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
    cpu_set_t mask;
    sched_getaffinity(0, sizeof mask, &mask);
    char name[100];
    snprintf(name, sizeof name, "rank.%d", rank);
    FILE *file = fopen(name, "w");
    fprintf(file, "%d %d %d %d %s ", getpid(), count, sum, CPU_COUNT(&mask), getenv("TMPDIR"));
    for (int core = 0; core < CPU_SETSIZE; core++) if (CPU_ISSET(core, &mask)) fprintf(file, "%d,", core);
    fprintf(file, "\n");
    fclose(file);
    if (argc > 2) sleep(atoi(argv[2]));
    if (argc > 1 && !strcmp(argv[1], "abort") && rank == 1) MPI_Abort(MPI_COMM_WORLD, 7);
    MPI_Finalize();
    return 0;
}
"""


def compile_ranks(implementation: str, folder: Path) -> Path:
    """Return the program, compiled for an implementation; skips the test where that is missing."""
    compiler = shutil.which(f"mpicc.{implementation}")
    if compiler is None:
        if implementation in os.environ.get("BALSAM_REQUIRE_MPI", "").split(","):
            pytest.fail(f"{implementation} is required, but there is no mpicc.{implementation}")
        pytest.skip(f"there is no mpicc.{implementation}")
    source, program = folder / "ranks.c", folder / f"ranks-{implementation}"
    source.write_text(_SOURCE)
    subprocess.run([compiler, str(source), "-o", str(program)], check=True)
    return program
