"""A launcher and its jobs work through the server while that dies again and again."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections import Counter

from balsam_program import BALSAM

from balsam_core import Job, open_db
from balsam_core.dbdir import address
from balsam_core.testing.tools import wait_until

SPAWNING = """
import sys
from balsam_core import current_job

job = current_job()
assert job.db.transport.server_status() is not None, "not through the server"
for number in range(int(job.parameters["children"])):
    job.spawn(name=f"{job.job.name}-{number}", command=f"sh -c 'echo {number} >> ran'")
with open("ran", "a") as file:
    file.write("parent\\n")
"""


def test_launcher_drains_while_its_server_is_killed(served, tmp_path, amount, verdict):
    """The server is killed while jobs run that add jobs: each job runs and finishes exactly once (T01)."""
    plain, spawning, children, kills = amount((200, 4, 3, 3), (2000, 40, 5, 30))
    chance = random.Random(7)
    script = tmp_path / "spawn.py"
    script.write_text(SPAWNING)
    with open_db(served.path) as db:
        db.jobs.add(Job(name=f"plain{number}", command="true", workflow="plain") for number in range(plain))
        db.jobs.add(
            Job(
                name=f"spawn{number}",
                command=f"{sys.executable} {script}",
                workflow="spawn",
                parameters={"children": children},
            )
            for number in range(spawning)
        )
    words = [*BALSAM, "--db", str(served.path), "launcher"]
    began = time.monotonic()
    with subprocess.Popen(
        [*words, "--consume-all", "-o", "json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launcher:
        try:
            killed = 0
            with open_db(served.path) as db:
                wait_until(lambda: "RUNNING" in db.jobs.states() or "JOB_FINISHED" in db.jobs.states(), "a first job")
                while killed < kills and launcher.poll() is None:
                    served.wait_for_another(served.kill_server())
                    killed += 1
                    moment = time.monotonic() + chance.uniform(0.1, 0.8)
                    while time.monotonic() < moment:
                        time.sleep(0.01)
            out, err = launcher.communicate(timeout=240)
        finally:
            launcher.kill()
    seconds = time.monotonic() - began
    assert launcher.returncode == 0, err
    assert killed >= min(2, kills)
    total = plain + spawning * (1 + children)
    done = json.loads(out)
    assert (done["finished"], done["failed"]) == (total, 0), done
    with open_db(served.path) as db:
        assert db.transport.server_status() is not None
        jobs = list(db.jobs)
        assert Counter(str(job.state) for job in jobs) == {"JOB_FINISHED": total}
        assert {job.attempt for job in jobs} == {1}
        for job in jobs:
            transitions = Counter(str(state) for event in db.jobs.history(job) for state, _ in event.transitions)
            assert set(transitions.values()) == {1}, (job, transitions)
        ran = {job.name: (db.workdir(job) / "ran").read_text() for job in jobs if job.workflow == "spawn"}
    assert len(ran) == spawning * (1 + children), "no child was added twice"
    assert all(text.count("\n") == 1 for text in ran.values()), "no job ran twice"
    published = address.read(served.dir)
    assert published is not None
    assert published.generation == killed + 1
    verdict(
        "T01",
        "server SIGKILLed under a launcher",
        f"{killed} kills: {total} jobs, {spawning * children} of them added by jobs, each ran and finished exactly once"
        f" in {seconds:.1f} s",
    )
