"""What psycopg doesn't do with libpq: connecting without its variables, and asking for the code of a refusal."""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from typing import TYPE_CHECKING

import psycopg
from psycopg import pq

from balsam_core.plugin import seconds_left

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PREFIX = "PG"
_NOT_OVERRIDDEN = ("PGSERVICE", "PGDATESTYLE", "PGTZ", "PGGEQO")  # by any parameter
# What libpq takes where it has no default and no empty value.
_DEFAULTS = {
    "sslcertmode": "allow",
    "require_auth": "password,md5,gss,sspi,scram-sha-256,none",
    "min_protocol_version": "3.0",
    "max_protocol_version": "3.0",
}
_SECONDS = 5.0  # for a server that has just refused to refuse again
_CODE = re.compile(rb'ErrorResponse\t.* C "(\w{5})"')
_WAITS = (pq.PollingStatus.READING, pq.PollingStatus.WRITING)


class _Hiding:
    """How many threads connect at the moment; the variables come back with the last one."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0


_hiding = _Hiding()


@contextlib.contextmanager
def hidden_variables() -> Iterator[None]:
    """Hide those of libpq's variables from it that no parameter overrides; ``os.environ`` stays as it is.

    Programs that another thread starts inside the block lose them, too.
    """
    if not any(name in os.environ for name in _NOT_OVERRIDDEN):
        yield
        return
    hiding = _hiding
    with hiding.lock:
        hiding.threads += 1
        if hiding.threads == 1:
            for name in _NOT_OVERRIDDEN:
                os.unsetenv(name)
    try:
        yield
    finally:
        with hiding.lock:
            hiding.threads -= 1
            if hiding.threads == 0:
                _show_variables()


def _show_variables() -> None:
    for name in _NOT_OVERRIDDEN:
        if (text := os.environ.get(name)) is not None:
            os.putenv(name, text)


def _start_anew() -> None:
    """Forget the parent's threads, which a forked child doesn't have."""
    global _hiding  # noqa: PLW0603
    if _hiding.threads:
        _show_variables()
    _hiding = _Hiding()


os.register_at_fork(after_in_child=_start_anew)


def overriding_variables(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return libpq's parameters, with its default for each one that isn't given and whose variable is set."""
    if not any(name.startswith(_PREFIX) for name in os.environ):
        return dict(parameters)
    defaults = {
        option.keyword.decode(): (option.compiled or b"").decode()
        for option in pq.Conninfo.get_defaults()
        if option.envvar and option.envvar.decode() in os.environ.keys() - set(_NOT_OVERRIDDEN)
    }
    return {**defaults, **{name: _DEFAULTS[name] for name in _DEFAULTS.keys() & defaults.keys()}, **parameters}


def refusal_code(parameters: Mapping[str, str]) -> str:
    """Connect once more and return the SQLSTATE by which the server refuses, empty where it is not known.

    libpq tells only the text, in the server's language; but from 18 on the trace of its messages has the code.
    """
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    try:
        with hidden_variables():
            _connect_traced(psycopg.conninfo.make_conninfo(**parameters), writing)
        found = _CODE.search(os.read(reading, 2**16))
    except (OSError, psycopg.Error):
        return ""
    finally:
        os.close(reading)
        os.close(writing)
    return found[1].decode() if found else ""


def _connect_traced(conninfo: str, descriptor: int) -> None:
    deadline = time.monotonic() + seconds_left(_SECONDS)
    connection = pq.PGconn.connect_start(conninfo.encode())
    try:
        connection.trace(descriptor)
        while (status := connection.connect_poll()) in _WAITS and (left := deadline - time.monotonic()) > 0:
            poll = select.poll()  # not select(), which takes no descriptor over 1023
            poll.register(connection.socket, select.POLLIN if status == pq.PollingStatus.READING else select.POLLOUT)
            poll.poll(left * 1000)
        connection.untrace()
    finally:
        connection.finish()
