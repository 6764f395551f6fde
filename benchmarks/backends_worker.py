"""One client process of ``bench_backends.py``: claims and finishes jobs until none is left, by Balsam or by hand.

Says ``ready`` when it has done so with a few jobs, begins at a line on its input, and prints the ids that it finished.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from backends_tools import bare

from balsam_core import open_db
from balsam_core.model.calls import ClaimJobs, RegisterLauncher, Resources, Update, UpdateJobs
from balsam_core.model.states import State
from balsam_core.operations.events import encode_transitions

if TYPE_CHECKING:
    from collections.abc import Callable

AT_ONCE = 8
WARM_UP = 8  # rounds
DONE = [
    (state, 0.0)
    for state in (
        State.STAGED_IN,
        State.PREPROCESSED,
        State.RUNNING,
        State.RUN_DONE,
        State.POSTPROCESSED,
        State.JOB_FINISHED,
    )
]


def repeat(once: Callable[[], list[int]]) -> None:
    """Run the rounds."""
    ids = [number for _ in range(WARM_UP) for number in once()]
    print("ready", flush=True)
    sys.stdin.readline()
    timed = 0
    begin = time.process_time()
    while some := once():
        ids += some
        timed += len(some)
    print(json.dumps({"ids": ids, "timed": timed, "cpu": time.process_time() - begin}), flush=True)


def ours(path: Path) -> None:
    """Claim and finish by Balsam's calls, as a launcher does."""
    with open_db(path) as db:
        registration = RegisterLauncher(
            host="bench", pid=os.getpid(), boot_id="b", process_start=0.0, lease_seconds=900
        )
        me = db.run(registration)
        claim = ClaimJobs(launcher=me, limit=AT_ONCE, resources=Resources())

        def once() -> list[int]:
            jobs = db.run(claim).jobs
            updates = [Update(job=job.id or 0, attempt=job.attempt, transitions=DONE, return_code=0) for job in jobs]
            if updates and (refused := db.run(UpdateJobs(launcher=me, updates=updates))):
                sys.exit(f"refused: {refused}")
            return [job.id or 0 for job in jobs]

        repeat(once)


def by_hand(path: Path) -> None:
    """Claim and finish by psycopg in the same tables, with a good engineer's statements."""
    me, transitions = os.getpid(), encode_transitions(DONE)
    with bare(path) as connection:
        cursor = connection.cursor()
        number = cursor.execute("SELECT min(id) FROM resource_classes").fetchone()[0]

        def once() -> list[int]:
            cursor.execute(
                "SELECT id FROM jobs WHERE claim_class = %s ORDER BY priority DESC, id LIMIT %s FOR UPDATE SKIP LOCKED",
                (number, AT_ONCE),
            )
            ids = [row[0] for row in cursor.fetchall()]
            if ids:
                cursor.execute(
                    "UPDATE jobs SET launcher_id = %s, attempt = attempt + 1, claim_class = NULL WHERE id = ANY(%s) "
                    "RETURNING *, (SELECT name FROM workflows WHERE id = workflow_id)",
                    (me, ids),
                )
                cursor.fetchall()
            connection.commit()
            if ids:
                cursor.execute(
                    "UPDATE jobs SET state = 'JOB_FINISHED', state_since = clock_timestamp(), launcher_id = NULL, "
                    "return_code = 0 WHERE id = ANY(%s) AND launcher_id = %s",
                    (ids, me),
                )
                cursor.executemany(
                    "INSERT INTO job_events (job_id, at, transitions, attempt) VALUES (%s, clock_timestamp(), %s, 1)",
                    [(job, transitions) for job in ids],
                )
                connection.commit()
            return ids

        repeat(once)


if __name__ == "__main__":
    workers = {"ours": ours, "by-hand": by_hand}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("worker", choices=workers)
    parser.add_argument("path", type=Path, help="the DB")
    options = parser.parse_args()
    workers[options.worker](options.path)
