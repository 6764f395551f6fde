"""Disables one of Balsam's own rules in each Python process that has this folder on ``PYTHONPATH``.

``BALSAM_MUTANT`` names the function below that does it. A test that runs such processes shows that its judge would
notice if the rule were broken.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import Any
from unittest import mock

from sqlalchemy import Select

from balsam_core.operations import adding, claiming, execution
from balsam_core.proxy.server.writer import GroupWriter

commits = itertools.count(1)


def writes_without_tickets() -> None:
    """Don't store the request ids of writes, so that a write that is sent again takes effect again."""
    run_prepared = execution.Tx.run_prepared

    def mutant(self: execution.Tx, statement: Any, parameters: Any = None) -> Any:
        return None if statement is execution._INSERT_REQUEST else run_prepared(self, statement, parameters)

    mock.patch.object(execution.Tx, "run_prepared", mutant).start()


def commits_rolled_back() -> None:
    """Roll each hundredth commit of a write server back, and say nothing."""
    execute = GroupWriter._execute

    def mutant(self: GroupWriter, statement: str) -> None:
        execute(self, "ROLLBACK" if statement == "COMMIT" and next(commits) % 100 == 0 else statement)

    mock.patch.object(GroupWriter, "_execute", mutant).start()


def claims_leave_jobs_claimable() -> None:
    """Give a job to a launcher, and let others claim it, too."""
    del claiming._ASSIGNED_VALUES["claim_class"]


def parents_not_locked() -> None:
    """Read the parents of new jobs without a lock, some time before the jobs are stored."""
    lock_parents = adding._Parents._lock_parents

    def mutant(_: object, tx: execution.Tx, outside: set[int], staged_insert: int) -> Any:
        with mock.patch.object(Select, "with_for_update", lambda query, **_: query):
            states = lock_parents(tx, outside, staged_insert)
        time.sleep(0.05 if outside else 0)
        return states

    mock.patch.object(adding._Parents, "_lock_parents", mutant).start()


globals()[os.environ["BALSAM_MUTANT"]]()
