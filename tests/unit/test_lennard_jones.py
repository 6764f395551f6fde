"""The demo ensemble: its potential is right, and neither a lie nor a miss passes unseen."""

from __future__ import annotations

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "lennard_jones"


def load(name):
    spec = spec_from_file_location(f"lennard_jones_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def search():
    with pytest.MonkeyPatch.context() as patch:
        # The script sets it for its own process, which here is everybody's.
        patch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
        return load("search")


@pytest.fixture(scope="module")
def reduce():
    return load("reduce")


@pytest.fixture(scope="module")
def table():
    return load("table")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a script's `main` in an empty directory with the given command line."""

    def main(module, *arguments):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
        module.main()

    monkeypatch.chdir(tmp_path)
    return main


def write_dimer(path, distance, energy):
    path.write_text(f"2\nenergy={energy!r} seed=1\nAr 0.0 0.0 0.0\nAr 0.0 0.0 {distance!r}\n")


def result(atoms, energy, rejected=None):
    return {"atoms": atoms, "energy": energy, "searches": 20, "hits": 11, "rejected": rejected or {}}


DEEPEST = 2 ** (1 / 6)  # the dimer's distance at its minimum, where the energy is -1


def test_dimer_has_depth_one_at_its_minimum_and_no_energy_at_distance_one(search, reduce):
    energy, gradient = search.energy_and_gradient(np.array([0.0, 0, 0, DEEPEST, 0, 0]))
    assert energy == pytest.approx(-1, abs=1e-14)
    assert gradient == pytest.approx(np.zeros(6), abs=1e-12)
    assert search.energy_and_gradient(np.array([0.0, 0, 0, 0, 1, 0]))[0] == pytest.approx(0, abs=1e-14)
    assert reduce.energy_of([(0, 0, 0), (0, 0, DEEPEST)]) == pytest.approx(-1, abs=1e-14)


def test_gradient_agrees_with_finite_differences(search):
    rng = np.random.default_rng(7)
    # A cubic lattice, shaken: no pair is so close that the difference quotient loses its digits.
    flat = (np.argwhere(np.ones((2, 2, 2))) * 1.2 + rng.uniform(-0.1, 0.1, (8, 3))).ravel()
    _, gradient = search.energy_and_gradient(flat)
    step = 1e-6
    quotients = [
        (search.energy_and_gradient(flat + move)[0] - search.energy_and_gradient(flat - move)[0]) / (2 * step)
        for move in np.eye(flat.size) * step
    ]
    assert gradient == pytest.approx(np.array(quotients), rel=1e-6, abs=1e-6)


def test_search_and_reduce_agree_on_the_energy_of_a_random_structure(search, reduce):
    points = np.random.default_rng(3).uniform(0, 3, (13, 3))
    energy, _ = search.energy_and_gradient(points.ravel())
    assert reduce.energy_of(points.tolist()) == pytest.approx(energy, rel=1e-12)


def test_search_repeats_itself_and_writes_what_reduce_accepts(search, reduce, run, tmp_path):
    run(search, "--atoms", 7, "--seed", 1)
    first = (tmp_path / "coordinates.xyz").read_bytes()
    run(search, "--atoms", 7, "--seed", 1)
    assert (tmp_path / "coordinates.xyz").read_bytes() == first
    assert reduce.checked_energy(tmp_path / "coordinates.xyz", 7) == pytest.approx(-16.505384, abs=1e-6)


def test_reduce_takes_the_lowest_and_counts_the_hits(reduce, run, tmp_path):
    write_dimer(tmp_path / "coordinates.xyz", 1.0, 0.0)
    write_dimer(tmp_path / "coordinates_17.xyz", DEEPEST, -1.0)
    write_dimer(tmp_path / "coordinates_18.xyz", DEEPEST, -1.0)
    run(reduce, "--atoms", 2, "--expect", 3)
    found = json.loads((tmp_path / "minimum.json").read_text())
    assert found.pop("energy") == pytest.approx(-1)
    assert found == {"atoms": 2, "searches": 3, "hits": 2, "rejected": {}}
    assert (tmp_path / "minimum.xyz").read_bytes() == (tmp_path / "coordinates_17.xyz").read_bytes()


def test_reduce_rejects_a_file_that_lies_about_its_energy(reduce, run, tmp_path, capsys):
    write_dimer(tmp_path / "coordinates.xyz", 1.2, 4 * (1.2**-12 - 1.2**-6))
    write_dimer(tmp_path / "coordinates_17.xyz", DEEPEST, -1.1)
    run(reduce, "--atoms", 2)
    found = json.loads((tmp_path / "minimum.json").read_text())
    assert found["energy"] > -1
    assert found["hits"] == 1
    assert list(found["rejected"]) == ["coordinates_17.xyz"]
    assert "states the energy -1.1, its coordinates have -1.000000000" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "can't be read"),
        ("2\nenergy=-1.0\nAr 0 0 0\nAr 0 0 one\n", "can't be read"),
        ("2\nenergy=-1.0\nAr 0 0 0\n", "doesn't hold"),
        ("3\nenergy=-1.0\nAr 0 0 0\nAr 0 0 1\nAr 0 1 0\n", "doesn't hold"),
        ("2\nenergy=-1.0\nAr 0 0 0\nAr 0 1\n", "doesn't hold"),
        ("2\nseed=1\nAr 0 0 0\nAr 0 0 1\n", "no energy"),
        ("2\nenergy=nan\nAr 0 0 0\nAr 0 0 nan\n", "states the energy nan"),
        ("2\nenergy=low\nAr 0 0 0\nAr 0 0 1\n", "has no energy"),
        ("2\nenergy=0.0\nAr 0 0 0\nAr 0 0 0\n", "has no energy"),
    ],
)
def test_reduce_rejects_a_file_that_is_no_structure(reduce, tmp_path, content, why):
    path = tmp_path / "coordinates.xyz"
    path.write_text(content)
    with pytest.raises(reduce.RejectedError, match=why):
        reduce.checked_energy(path, 2)


def test_reduce_fails_when_a_search_handed_over_nothing(reduce, run, tmp_path):
    write_dimer(tmp_path / "coordinates.xyz", DEEPEST, -1.0)
    with pytest.raises(SystemExit, match="expected 2 files"):
        run(reduce, "--atoms", 2, "--expect", 2)
    assert not (tmp_path / "minimum.json").exists()


def test_reduce_fails_when_no_file_is_usable(reduce, run, tmp_path):
    write_dimer(tmp_path / "coordinates.xyz", DEEPEST, -2.0)
    with pytest.raises(SystemExit, match="no usable file"):
        run(reduce, "--atoms", 2)


def test_table_says_that_all_minima_were_found(table):
    text = table.table([result(atoms, energy) for atoms, energy in table.PUBLISHED.items()])
    assert "MISSED" not in text
    assert text.endswith("\nall 7 published minima found\n")


def test_table_reports_a_miss(table, run, tmp_path, capsys):
    (tmp_path / "minimum.json").write_text(json.dumps(result(8, -19.821489)))
    (tmp_path / "minimum_5.json").write_text(json.dumps(result(7, -15.935043, {"coordinates_3.xyz": "lies"})))
    run(table, "--expect", 2)
    lines = (tmp_path / "table.txt").read_text().splitlines()
    assert lines[1].split(maxsplit=5) == [
        *["7", "-15.935043", "-16.505384", "0.570341", "11/20"],
        "MISSED; files rejected: 1",
    ]
    assert lines[2].split() == ["8", "-19.821489", "-19.821489", "0.000000", "11/20"]
    assert lines[3:] == ["1 of 2 missed"]
    assert capsys.readouterr().out.splitlines() == lines


def test_table_does_not_call_an_impossible_energy_found(table):
    text = table.table([result(7, -17.0)])
    assert "BELOW THE PUBLISHED MINIMUM" in text
    assert "all" not in text.splitlines()[-1]


def test_table_fails_when_a_result_is_missing(table, run, tmp_path):
    (tmp_path / "minimum.json").write_text(json.dumps(result(8, -19.821489)))
    with pytest.raises(SystemExit, match="expected 7 files"):
        run(table, "--expect", 7)
