"""The states of a job and the one table of allowed transitions.

The names are those of the classic Balsam. A job's life in the usual case:
CREATED, (AWAITING_PARENTS,) READY, STAGED_IN, PREPROCESSED, RUNNING, RUN_DONE, POSTPROCESSED, JOB_FINISHED.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING

from balsam_core.errors import SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable


class State(StrEnum):
    """Where a job stands."""

    CREATED = "CREATED"
    AWAITING_PARENTS = "AWAITING_PARENTS"
    READY = "READY"
    STAGED_IN = "STAGED_IN"
    PREPROCESSED = "PREPROCESSED"
    RUNNING = "RUNNING"
    RUN_DONE = "RUN_DONE"
    POSTPROCESSED = "POSTPROCESSED"
    JOB_FINISHED = "JOB_FINISHED"
    RUN_TIMEOUT = "RUN_TIMEOUT"
    RUN_ERROR = "RUN_ERROR"
    RESTART_READY = "RESTART_READY"
    FAILED = "FAILED"
    USER_KILLED = "USER_KILLED"
    PARENT_KILLED = "PARENT_KILLED"


_S = State
_STOPPED = frozenset({_S.FAILED, _S.USER_KILLED})

TRANSITIONS: dict[State, frozenset[State]] = {
    _S.CREATED: _STOPPED | {_S.AWAITING_PARENTS, _S.READY, _S.PARENT_KILLED},
    _S.AWAITING_PARENTS: _STOPPED | {_S.READY, _S.PARENT_KILLED},
    _S.READY: _STOPPED | {_S.STAGED_IN, _S.AWAITING_PARENTS},
    _S.STAGED_IN: _STOPPED | {_S.PREPROCESSED},
    _S.PREPROCESSED: _STOPPED | {_S.RUNNING},
    _S.RUNNING: _STOPPED | {_S.RUN_DONE, _S.RUN_ERROR, _S.RUN_TIMEOUT},
    _S.RUN_DONE: _STOPPED | {_S.POSTPROCESSED},
    _S.POSTPROCESSED: _STOPPED | {_S.JOB_FINISHED},
    _S.RUN_ERROR: _STOPPED | {_S.RESTART_READY, _S.POSTPROCESSED},
    _S.RUN_TIMEOUT: _STOPPED | {_S.RESTART_READY, _S.POSTPROCESSED},
    _S.RESTART_READY: _STOPPED | {_S.RUNNING},
    _S.JOB_FINISHED: frozenset(),
    # A retry starts an ended job again, waiting for its parents where they must run again too.
    _S.FAILED: frozenset({_S.AWAITING_PARENTS, _S.READY}),
    _S.USER_KILLED: frozenset({_S.AWAITING_PARENTS, _S.READY}),
    _S.PARENT_KILLED: frozenset({_S.AWAITING_PARENTS, _S.READY}),
}
"""From each state, where a job may go in one transition."""

END = frozenset({_S.JOB_FINISHED, _S.FAILED, _S.USER_KILLED, _S.PARENT_KILLED})
"""States that a job leaves only by a retry."""

UNSUCCESSFUL = END - {_S.JOB_FINISHED}
"""End states that end the waiting children, too; ``retry`` starts such jobs again."""

CHILD_END_STATE: dict[State, State] = {
    _S.FAILED: _S.FAILED,
    _S.USER_KILLED: _S.PARENT_KILLED,
    _S.PARENT_KILLED: _S.PARENT_KILLED,
}
"""The state in which a waiting child ends when its parent ends in the given one."""

ACTIVE = frozenset(_S) - END
"""States of jobs that still have work before them."""


def stored_state(job: int, text: str) -> State:
    """Return the state of a job as a database has it.

    Raises:
        SchemaMismatch: This program doesn't know it.
    """
    state = _BY_TEXT.get(text)
    if state is None:
        raise SchemaMismatch(f"job {job} is in the state {text!r}, which this program doesn't know")
    return state


_BY_TEXT: dict[str, State] = {state.value: state for state in State}


def first_illegal_transition(start: State, transitions: Iterable[State]) -> tuple[State, State] | None:
    """Return the first transition of the path that :data:`TRANSITIONS` forbids, None where all are allowed."""
    for pair in pairwise([start, *transitions]):
        if pair[1] not in TRANSITIONS[pair[0]]:
            return pair
    return None
