"""Looking at plugins without letting their code into this process.

A plugin may end the process in which it is imported, crash it, never return, or change it. So a listing of all plugins
starts one child process, which forks one process for each plugin; that process loads the plugin and reports. What a
plugin prints goes to stderr. A plugin that is not one of ours is looked at in this way before it is used, too.
"""

from __future__ import annotations

import contextlib
import importlib.util  # noqa: F401  (needed to check a plugin, which may have made imports impossible)
import json
import os
import pkgutil  # noqa: F401  (the same)
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from traceback import format_exception
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from balsam_core.backends import reports
from balsam_core.backends.discovery import EntryPoint
from balsam_core.backends.kinds import KINDS
from balsam_core.backends.loading import (
    PluginError,
    check_driver,
    check_modules,
    describe_exception,
    load_plugin,
    new_manager,
    remedy_of_a_bug,
)
from balsam_core.backends.reports import ProbeReport
from balsam_core.errors import BalsamError, NoResources
from balsam_core.plugin_types import DBType, MPIKind
from balsam_core.system.processes import descendants, send_signal
from balsam_core.system.shortages import PASSING, shortage
from balsam_core.system.tether import become_subreaper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkContext, ForkProcess

LOAD_TIMEOUT = 20.0  # seconds that one plugin may take
AT_ONCE = 4  # plugins that are loaded at the same time
START_TIMEOUT = 60.0  # seconds for all that is not the loading of plugins
LACKS_RESOURCES = 75  # exit code, EX_TEMPFAIL: no file descriptors or memory


class _Task(NamedTuple):
    """What the child process is asked."""

    sys_path: list[str]
    plugins: dict[str, list[EntryPoint]]
    with_driver: bool
    timeout: float


def probe(plugins: Mapping[str, list[EntryPoint]], *, with_driver: bool) -> dict[str, ProbeReport]:
    """Load plugins in processes of their own and report what was found.

    Args:
        plugins: By name, all its entry points: one, if all is well. All are of one kind.
        with_driver: Whether to load the drivers and all modules, too; else the reports are kept for later.

    Returns:
        A report for each name.
    """
    found = {name: _crashed("the probing process ended", points) for name, points in plugins.items()}
    if plugins:
        found |= dict(_run_child(_Task(sys.path, dict(plugins), with_driver, LOAD_TIMEOUT)))
        if not with_driver:
            reports.keep(plugins, found)
    return found


# ---- the child process


def _run_child(task: _Task) -> Iterator[tuple[str, ProbeReport]]:
    """Give the reports of a new interpreter, which finds the same modules as this one."""
    command = f"""
try:
    import json, sys
    task = json.load(sys.stdin)
    sys.path[:] = task["sys_path"]
    from {__name__} import main
except (OSError, ImportError) as err:
    if any(text in str(err) for text in {[os.strerror(number) for number in sorted(PASSING)]!r}):
        sys.exit({LACKS_RESOURCES})
    raise
main(task)
"""
    question = json.dumps(
        {**task._asdict(), "plugins": {name: [*map(asdict, points)] for name, points in task.plugins.items()}}
    )
    rounds = -(-len(task.plugins) // AT_ONCE)
    with subprocess.Popen(
        [sys.executable, "-P", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as child:
        try:
            output, _ = child.communicate(question.encode(), START_TIMEOUT + rounds * task.timeout)
        except subprocess.TimeoutExpired:
            return
        finally:
            for pid, start in descendants(child.pid):
                send_signal(pid, start, signal.SIGKILL)
            child.kill()
    if child.returncode == LACKS_RESOURCES:
        raise NoResources("plugins can't be looked at now: too few files may be open, or memory is short (ulimit -a)")
    for line in output.splitlines():
        with contextlib.suppress(ValueError):  # what was printed at the start of the interpreter
            yield msgspec.json.decode(line, type=tuple[str, ProbeReport])


def main(question: dict[str, Any]) -> None:
    """Answer one task: a line on stdout for each plugin."""
    task = _Task(**question)
    plugins = {name: [EntryPoint(**point) for point in points] for name, points in question["plugins"].items()}
    become_subreaper()
    results = os.dup(1)
    os.dup2(2, 1)
    try:
        _answer(task, plugins, results)
    except (OSError, BalsamError) as err:
        if shortage(err):
            sys.exit(LACKS_RESOURCES)
        raise


def _answer(task: _Task, plugins: dict[str, list[EntryPoint]], results: int) -> None:
    from multiprocessing import get_context

    for line in _probe_each(get_context("fork"), task._replace(plugins=plugins), results):
        with contextlib.suppress(BrokenPipeError):  # the program that asked has ended
            os.write(results, b"\n" + msgspec.json.encode(line) + b"\n")
    for pid, start in descendants(os.getpid()):  # daemons that a plugin has started
        send_signal(pid, start, signal.SIGKILL)


def _probe_each(context: ForkContext, task: _Task, results: int) -> Iterator[tuple[str, ProbeReport]]:
    from multiprocessing.connection import wait

    for name in {points[0].kind for points in task.plugins.values()}:
        new_manager(KINDS[name])  # what all need is imported once
    waiting = deque(task.plugins)
    running: dict[str, tuple[ForkProcess, Connection, float]] = {}
    while waiting or running:
        while waiting and len(running) < AT_ONCE:
            name = waiting.popleft()
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_probe_one, args=(theirs, name, task, results), daemon=True)
            process.start()
            theirs.close()
            running[name] = process, ours, time.monotonic() + task.timeout
        events: list[Any] = [event for process, ours, _ in running.values() for event in (ours, process.sentinel)]
        wait(events, max(0.0, min(deadline for *_, deadline in running.values()) - time.monotonic()))
        for name, (process, ours, deadline) in list(running.items()):
            ended = not process.is_alive()
            report = None
            if ours.poll():
                report = _received(ours)
                if report is None:
                    process.join(1.0)
                    ended = True
            elif not ended and time.monotonic() < deadline:
                continue
            del running[name]
            ours.close()
            with contextlib.suppress(OSError):
                os.killpg(process.pid or 0, signal.SIGKILL)  # with the processes that the plugin has started
            process.kill()
            process.join()
            late = f"still loading after {task.timeout:g} s"
            if report is None and process.exitcode == LACKS_RESOURCES:
                raise NoResources("a plugin can't be loaded now")
            yield name, report or _crashed(_describe_end(process.exitcode) if ended else late, task.plugins[name])


def _received(ours: Connection) -> ProbeReport | None:
    try:
        return msgspec.json.decode(ours.recv_bytes(), type=ProbeReport)
    except (EOFError, OSError, ValueError):  # it closed the pipe, or wrote into it
        return None


def _crashed(detail: str, points: Sequence[EntryPoint]) -> ProbeReport:
    packages = " ".join(point.package for point in points)
    return ProbeReport(status="broken", detail=detail, remedy=f"pip uninstall {packages}, or tell its authors")


def _describe_end(code: int | None) -> str:
    if code is None:
        return "loading it closed the files of its process"
    if code < 0:
        return f"loading it ended the process by {signal.Signals(-code).name}"
    return f"loading it ended the process with exit code {code}"


def _probe_one(pipe: Connection, name: str, task: _Task, results: int) -> None:
    """Load one plugin and report, in a process of its own."""
    os.setpgid(0, 0)
    os.close(results)
    try:
        report = _report(name, task.plugins[name], with_driver=task.with_driver)
    except NoResources:
        os._exit(LACKS_RESOURCES)
    pipe.send_bytes(msgspec.json.encode(report))
    os._exit(0)  # whatever the plugin has left behind


def _report(name: str, points: Sequence[EntryPoint], *, with_driver: bool) -> ProbeReport:
    package = points[0].package
    fault = None
    try:
        identity, _ = load_plugin(name, points, new_manager(KINDS[points[0].kind]))
        if isinstance(identity, DBType):
            check_driver(identity, package, load=with_driver)
        if with_driver:
            check_modules(identity, package, points[0].module)
    except PluginError as err:
        fault = err
    except KeyboardInterrupt as err:  # nobody's Ctrl-C: this process is in a session of its own
        fault = PluginError("broken", describe_exception(err), remedy_of_a_bug(package))
        fault.__cause__ = err
    card = fault.identity if fault else identity
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    return ProbeReport(
        status=fault.status if fault else "ok",
        detail=_text(fault.detail) if fault else "",
        remedy=_text(fault.remedy) if fault else "",
        server=card.server.value if isinstance(card, DBType) else "",
        api=card.plugin_api if card else None,
        mpi=card if isinstance(card, MPIKind) and fault is None else None,
        traceback=_text("".join(format_exception(fault.__cause__))) if fault and fault.__cause__ else "",
        files={_text(file): reports.changed(file) for file in files if isinstance(file, str)},
    )


def _text(text: str) -> str:
    """Return a text as it can be encoded."""
    return text.encode(errors="backslashreplace").decode()
