"""Faults at random under writers and launchers: nothing acknowledged is lost, nothing is doubled (T45)."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import pytest
import random_faults
from amounts import FULL
from random_faults import SETUPS, Load, run_and_judge

SEED = int(os.environ.get("BALSAM_FAULTS_SEED", "0")) or (random.SystemRandom().randrange(1, 10**6) if FULL else 1)


@pytest.mark.parametrize("setup", SETUPS)
def test_random_faults(setup, tmp_path, run_directory, amount, verdict):
    seconds, longest = amount((6, 3), (60, 16))
    again = f"files in {tmp_path}; again with BALSAM_FAULTS_SEED={SEED}"
    print(again)  # noqa: T201
    faults, done = run_and_judge(setup, SEED, tmp_path, run_directory, seconds=seconds, longest=longest)
    assert not faults, f"{ {kind: found[:5] for kind, found in faults.items()} }\n{done}; {again}"
    verdict("T45", f"{setup}: faults at random under writers and launchers", f"seed {SEED}: {done}")


MUTANTS = {
    # The server dies often between a commit and its answers.
    "writes_without_tickets": (
        "sqlite served",
        "doubled",
        Load(least=150, env={"BALSAM_FAILPOINT": "after_commit:30"}),
    ),
    "commits_rolled_back": ("sqlite served", "lost", Load(least=600)),
    "claims_leave_jobs_claimable": ("sqlite direct", "ran_at_once", Load(least=100, durations=(0.3,))),
    "parents_not_locked": ("postgres", "stuck", Load(least=100)),
}


@pytest.mark.parametrize("mutant", MUTANTS if FULL else ["claims_leave_jobs_claimable"])
def test_broken_rules_are_noticed(mutant, tmp_path, run_directory, verdict):
    """The same with one of Balsam's own rules disabled: the judge names what comes of it (T45)."""
    setup, kind, load = MUTANTS[mutant]
    folder = Path(random_faults.__file__).with_name("mutants")
    env = {**load.env, "PYTHONPATH": str(folder), "BALSAM_MUTANT": mutant}
    load = replace(load, cli=0, pause=0.01, env=env)
    faults, done = run_and_judge(setup, 1, tmp_path, run_directory, seconds=2, longest=1, load=load)
    assert kind in faults, f"{faults}\n{done}; files in {tmp_path}"
    verdict("T45", f"{setup}: {mutant.replace('_', ' ')}", f"noticed: {len(faults[kind])} {kind.replace('_', ' ')}")
