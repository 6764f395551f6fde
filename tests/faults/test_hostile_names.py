"""Names that mean harm go through the server and come back unchanged; their directories stay inside ``data/``."""

from __future__ import annotations

import os
import random

import pytest
from balsam_program import here

from balsam_core import Job, open_db
from balsam_core.dbdir.workdirs import make_workdir
from balsam_core.errors import InvalidInput
from balsam_core.model.job import LONGEST_NAME

PARTS = [
    *("..", "../", "/", "//", "\\", ".", "-", "--help", "-rf", "~", "~root", "etc/passwd", "/etc", "C:", "CON", "nul"),
    *(" ", "\t", "\n", "\r\n", "\x01", "\x1b[2J", "\x7f", "\u202e", "\u200b", "\ufeff", "\u2028", "\x85"),
    *("$(touch harm)", "`touch harm`", ";touch harm", "|sh", "&", "%s%n", "{x}", "{{", "*", "?", "'", '"', "<", ">"),
    *("a", "A", "ä", "a\u0308", "ß", "İ", "🌲", "👩‍🚀", "日本", "x" * 190, "🌲" * 60, "\U0010ffff", "_1", "_12"),
]
WHOLE = ["", ".", "..", "../../etc", "/etc/passwd", "x" * LONGEST_NAME, "🌲" * LONGEST_NAME, "a", "A", "a_1", "-"]
REFUSED = ["nul\0byte", "\udc80", "x" * (LONGEST_NAME + 1)]


def hostile_names(number, seed):
    """Return so many names, the same for the same seed."""
    chance = random.Random(seed)
    made = ["".join(chance.choices(PARTS, k=chance.randint(1, 6))) for _ in range(number - len(WHOLE))]
    return [*WHOLE, *made]


def test_any_name_goes_through_the_server_and_stays_inside_data(served, tmp_path, amount, verdict):
    """Jobs have hostile names: they come back as they were, their directories stay inside ``data/`` (T36)."""
    number = amount(400, 10_000)
    names = hostile_names(number, 36)
    workflows = [name[:255] or "w" for name in reversed(names)]
    before = sorted(tmp_path.iterdir())
    with open_db(served.path) as db:
        for name in REFUSED:
            for fields in ({"name": name}, {"workflow": name}):
                with pytest.raises(InvalidInput):
                    db.jobs.add(Job(command="true", **fields))
        jobs = [
            Job(name=name, workflow=workflow, command="true") for name, workflow in zip(names, workflows, strict=True)
        ]
        db.jobs.add(jobs)
        told = {job.id: (job.name, job.workflow) for job in db.jobs}
        assert db.transport.server_status().calls > 0
        sent = zip(jobs, names, workflows, strict=True)
        assert told == {job.id: (name or "job", workflow) for job, name, workflow in sent}
        data = served.dir.data.resolve()
        places = set()
        for job in jobs:
            made = make_workdir(db.directory, job)
            assert made == db.workdir(job)
            assert made.resolve().parent.parent == data
            assert all(len(os.fsencode(part)) <= 200 and part[0] not in ".-" for part in made.parts[-2:])
            places.add(made)
        # On file systems that don't tell a from A as well.
        assert len({str(place).lower() for place in places}) == number
        assert len(list(data.iterdir())) == len(set(workflows))
    assert sorted(tmp_path.iterdir()) == before
    verdict(
        "T36",
        "hostile names through the server",
        f"{number} names of jobs and workflows came back unchanged, 0 paths outside of data/; {2 * len(REFUSED)} that"
        " hold NUL, half characters or are too long refused",
    )


def test_selectors_and_listings_bear_any_name(served):
    """The command line lists and selects jobs with hostile names: no control character reaches the terminal (T36)."""
    with open_db(served.path) as db:
        db.jobs.add([Job(name=name, workflow="w", command="true") for name in hostile_names(60, 37)])
    done = here.good("ls", "--wf", "w", db=served.path)
    assert "\x1b" not in done.out
    assert "\u202e" not in done.out
    assert len(here.good("ls", "-o", "json", db=served.path).json) == 60
    with open_db(served.path) as db:
        for name in hostile_names(60, 37):
            assert db.jobs.where(name=name or "job").count() >= 1
        with pytest.raises(InvalidInput, match="NUL"):
            db.jobs.where(name="nul\0byte").count()


def test_a_planted_link_in_data_fails_its_job_only(served, tmp_path, verdict):
    """Symbolic links are planted in ``data/``: their jobs fail, others run, targets are untouched (T37)."""
    outside = tmp_path / "outside"
    outside.mkdir()
    with open_db(served.path) as db:
        jobs = [
            Job(name="at the workflow", workflow="planted", command="touch harm"),
            Job(name="at the job", workflow="w", command="touch harm"),
            Job(name="dangling", workflow="w", command="touch harm"),
            Job(name="honest", workflow="w", command="touch result"),
        ]
        db.jobs.add(jobs)
        (served.dir.data / "planted").symlink_to(outside)
        for job, target in ((jobs[1], outside), (jobs[2], tmp_path / "missing")):
            db.workdir(job).parent.mkdir(exist_ok=True)
            db.workdir(job).symlink_to(target)
        here("launcher", "--consume-all", db=served.path)
        states = {job.name: str(job.state) for job in db.jobs}
        assert states == {
            "at the workflow": "FAILED",
            "at the job": "FAILED",
            "dangling": "FAILED",
            "honest": "JOB_FINISHED",
        }
        assert all("symbolic link" in db.jobs.history(job)[-1].message for job in jobs[:3])
        assert (db.workdir(jobs[3]) / "result").exists()
    assert list(outside.iterdir()) == []
    assert not (tmp_path / "missing").exists()
    verdict("T37", "symbolic links planted in data/", "their jobs failed with the reason, targets unchanged")
