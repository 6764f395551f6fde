"""Random faults under writers and launchers, in the manner of Jepsen; ``journal_judge.py`` judges what is left.

A run follows a plan, which follows from a seed. Its files stay in one directory: ``plan.json``, the journals
``w*.journal``, ``runs.log`` (what the jobs wrote), ``done.log`` (what was done when), what each program said, and the
backups. Times differ from run to run, so a seed repeats the faults and not each step.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import psutil
from backend_dbs import make_db
from balsam_program import BALSAM, child
from exact import rows_by_sqlite
from journal_judge import AT_THE_END, IN_A_BACKUP, Evidence, judge, read_database, read_journal, read_log
from resources import take_descriptors
from served_db import ADDRESS_DAMAGES
from shims import FailIO, preload

from balsam_core import BalsamError, open_db
from balsam_core.client.dead_launchers import end_dead_launchers
from balsam_core.dbdir.lease import LeaseObserver
from balsam_core.errors import JobsFailed
from balsam_core.model import calls
from balsam_core.testing.tools import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from journal_judge import Call
    from served_db import ServedDB

SETUPS = {"sqlite direct": "sqlite", "sqlite served": "sqlite", "postgres": "postgres", "mysql": "mysql"}
WRITER = Path(__file__).with_name("random_writer.py")
PATIENCE = 240  # seconds for what must happen at last, on a busy machine
GOOD_CODES = {0, 6, 7, 10, 143, -15}
"""How programs may end: done, no database, unknown outcome, or by the SIGTERM at the end of a run."""

SCRIPT = """
say() {{ echo $1 $BALSAM_JOB_ID $BALSAM_LAUNCHER_ID $$ >>{log}; }}
trap 'say stopped; exit 143' TERM
say start
sleep $1
if [ $2 = 0 ]; then say end; else say failed; fi
exit $2
"""

# What SQLAlchemy's pool logs of a connection that broke, where a program has not set up logging.
_LOGGED_BY_SQLALCHEMY = "Exception during reset or similar\nTraceback"

# ---------------------------------------------------------------------------------------------------------------- plan


class Fault(NamedTuple):
    """One fault of a plan.

    Attributes:
        at: Seconds after the beginning.
        kind: kill, freeze, no descriptors, disk full, address, backup.
        role: Of the process that it meets: server, watchdog, writer, launcher; empty for none.
        pick: From 0 to 1: which of several, and which damage to the address.
        seconds: How long it lasts.
    """

    at: float
    kind: str
    role: str
    pick: float
    seconds: float


def make_plan(seed: int, seconds: float, *, served: bool, longest: float) -> list[Fault]:
    """Draw the faults of a run: about three in two seconds, of which some overlap.

    Args:
        seed: Of the draw.
        seconds: The time in which faults begin.
        served: Whether there are a watchdog and a server.
        longest: Seconds that one may last.
    """
    chance = random.Random(seed)
    roles = ["writer", "launcher", *(["server", "server", "watchdog"] if served else [])]
    kinds = ["kill"] * 4 + ["freeze"] * 3 + ["no descriptors", "disk full"] + ["address"] * (2 * served)
    plan = [Fault(chance.uniform(0.3, 0.7) * seconds, "backup", "", 0, 0)]
    at = 0.0
    while (at := at + chance.expovariate(1.5)) < seconds:
        kind = chance.choice(kinds)
        role = chance.choice(roles) if kind in {"kill", "freeze", "no descriptors"} else ""
        # Mostly short; the longest let the watchdog replace what is frozen.
        plan.append(Fault(at, kind, role, chance.random(), min(longest, chance.expovariate(1.0))))
    return sorted(plan)


# ----------------------------------------------------------------------------------------------------------------- run


@dataclass
class Load:
    """Who works meanwhile.

    Attributes:
        api: Writers through the Python API.
        cli: Writers by the command line.
        launchers: Launchers.
        pause: Seconds between the calls of a writer, at most.
        durations: Seconds that a job takes, to choose from.
        least: Calls that must have been acknowledged before the end, however long that takes.
        env: Added to the environment of all programs.
    """

    api: int = 3
    cli: int = 1
    launchers: int = 2
    pause: float = 0.15
    durations: tuple[float, ...] = (0, 0, 0, 0, 0, 0.1, 0.1, 1)
    least: int = 50
    env: Mapping[str, str] = field(default_factory=dict)


class Program:
    """A program of the run that is started again when it has ended."""

    def __init__(self, name: str, argv: list[str], said: Path, env: Mapping[str, str]) -> None:
        self.name = name
        with said.open("ab") as file:
            self.process = psutil.Popen(
                argv, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env={**os.environ, **env}
            )
        self.killed = False

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.process.poll() is not None


class Run:
    """One run on a DB that is not yet served.

    Args:
        db: The DB.
        directory: For the files; it is empty.
        plan: The faults.
        load: Who works.
        seed: For what the writers do.
        served: Whether a server runs.
        disk: The shim that fills the disk, for who writes to it.
    """

    def __init__(
        self, db: ServedDB, directory: Path, plan: list[Fault], load: Load, seed: int, *, served: bool, disk: FailIO
    ) -> None:
        self.db, self.directory, self.plan, self.load, self.seed, self.served = db, directory, plan, load, seed, served
        self.backups: list[tuple[Path, float, Program]] = []
        self.problems: list[str] = []
        self.done: Counter[str] = Counter()
        self._disk = disk
        # Without a server all clients write to the file; with one only it does.
        self._full_path = str(db.path) if served else str(db.path / "db.sqlite3")
        self._env = {**load.env, **({} if served else preload(disk))}
        db.env = {**load.env, **(preload(disk) if served else {})}
        self._stop = directory / "stop"
        self._script = directory / "job.sh"
        self._log = directory / "runs.log"
        self._log.touch()
        self._script.write_text(SCRIPT.format(log=self._log))
        self._writers: list[Program] = []
        self._launchers: list[Program] = []
        self._starter: Program | None = None
        self._left: list[psutil.Process] = []  # processes of killed programs
        self._heals: list[tuple[float, Callable[[], None]]] = []
        self._started = 0

    def run(self) -> None:
        """Do it all, until nothing is left to do."""
        (self.directory / "plan.json").write_text(json.dumps([fault._asdict() for fault in self.plan], indent=1))
        if self.served:
            self.db.start()
        try:
            with open_db(self.db.path) as self._opened:
                self._inflict_all()
                self._finish()
        finally:
            self._end_all()

    # ---- the programs

    def _start(self, name: str, argv: list[str], env: Mapping[str, str] | None = None) -> Program:
        self._started += 1
        return Program(name, argv, self.directory / f"{name}.said", self._env if env is None else env)

    def _start_writer(self, slot: int) -> Program:
        name = f"w{self._started}"
        spec = {
            "db": str(self.db.path),
            "writer": name,
            "journal": str(self.directory / f"{name}.journal"),
            "stop": str(self._stop),
            "seed": f"{self.seed} {name}",
            "script": str(self._script),
            "cli": slot >= self.load.api,
            "timeout": [None, 2.0, 5.0][slot % 3],
            "pause": self.load.pause,
            "durations": self.load.durations,
        }
        return self._start(name, [sys.executable, str(WRITER), json.dumps(spec)])

    def _start_launcher(self, slots: int = 3) -> Program:
        words = ["launcher", "--consume-all", "--max-ranks-per-node", str(slots), "--db", str(self.db.path)]
        return self._start(f"launcher{self._started}", [*BALSAM, *words])

    def _keep_running(self) -> None:
        """Start again what has ended, as a user would."""
        for slot in range(self.load.api + self.load.cli):
            if slot == len(self._writers):
                self._writers.append(self._start_writer(slot))
            elif self._writers[slot].ended and not self._stop.exists():
                self._note_end(self._writers[slot])
                self._writers[slot] = self._start_writer(slot)
        for slot in range(self.load.launchers):
            if slot == len(self._launchers):
                self._launchers.append(self._start_launcher())
            elif self._launchers[slot].ended:
                self._note_end(self._launchers[slot])
                self._launchers[slot] = self._start_launcher()
        if self.served and self._process_of("watchdog") is None and (self._starter is None or self._starter.ended):
            words = ["dbserver", "--path", str(self.db.path)]
            self._starter = self._start("dbserver", [*BALSAM, *words], self.db.env)

    def _note_end(self, program: Program) -> None:
        """See how a program has ended."""
        code = program.process.returncode
        if not program.killed:
            self._write(f"{program.name} ended: {code}")
            said = (self.directory / f"{program.name}.said").read_text(errors="replace")
            tracebacks = said.count("Traceback") - said.count(_LOGGED_BY_SQLALCHEMY)
            if code not in GOOD_CODES or tracebacks:
                self.problems.append(f"{program.name} ended with {code}: {said[-2000:]}")

    # ---- the faults

    def _inflict_all(self) -> None:
        self._keep_running()
        wait_until(self._acked, "a first answer", seconds=PATIENCE)
        began = time.monotonic()
        for fault in self.plan:
            while time.monotonic() < began + fault.at:
                self._go_on()
            self._inflict(fault)
        wait_until(lambda: self._go_on() >= self.load.least, "enough answers", seconds=PATIENCE)

    def _go_on(self) -> int:
        """Do what is due; returns how many calls were acknowledged until now."""
        self._heal(time.monotonic())
        self._keep_running()
        time.sleep(0.02)
        return self._acked()

    def _acked(self) -> int:
        """Count the acknowledged calls."""
        return sum(path.read_bytes().count(b'"answer"') for path in self.directory.glob("w*.journal"))

    def _inflict(self, fault: Fault) -> None:
        """Begin one fault, and note when to end it."""
        heal: Callable[[], None] | None = None
        detail = ""
        if fault.role:
            victim = self._pick(fault)
            if victim is None:
                return
            victims = [victim] if fault.role in {"server", "watchdog"} else _tree(victim)
            detail = f"{fault.role} {victim.pid}"
            if fault.kind == "kill":
                self._kill(fault.role, victim, victims)
            elif fault.kind == "freeze":
                _signal(signal.SIGSTOP, victims)
                heal = partial(_signal, signal.SIGCONT, victims)
            else:
                heal = take_descriptors(victim)
        elif fault.kind == "disk full":
            self._disk.set(errno.ENOSPC, path=self._full_path, calls=["write", "truncate", "open"])
            heal = self._disk.off
        elif fault.kind == "address":
            detail = list(ADDRESS_DAMAGES)[int(fault.pick * len(ADDRESS_DAMAGES))]
            with contextlib.suppress(FileNotFoundError):  # withdrawn, or lost before
                ADDRESS_DAMAGES[detail](self.db.dir.address_file)
        else:
            self._back_up()
        self.done[fault.kind + (f" of {fault.role}" if fault.role else "")] += 1
        self._write(f"{fault.kind} {detail} for {fault.seconds:.2f} s" if heal else f"{fault.kind} {detail}")
        if heal is not None:
            self._heals.append((time.monotonic() + fault.seconds, heal))

    def _pick(self, fault: Fault) -> psutil.Process | None:
        if fault.role in {"server", "watchdog"}:
            return self._process_of(fault.role)
        programs = [one for one in (self._writers if fault.role == "writer" else self._launchers) if not one.ended]
        if fault.kind == "no descriptors":  # a program that starts without any fails, whatever it is
            programs = [one for one in programs if self._is_settled(one)]
        return psutil.Process(programs[int(fault.pick * len(programs))].process.pid) if programs else None

    def _is_settled(self, program: Program) -> bool:
        """Say whether a program has begun its work, and starts no others."""
        if program in self._launchers:
            return (self.directory / f"{program.name}.said").stat().st_size > 0
        journal = self.directory / f"{program.name}.journal"
        return program in self._writers[: self.load.api] and journal.exists() and b'"answer"' in journal.read_bytes()

    def _process_of(self, role: str) -> psutil.Process | None:
        """Return the living watchdog or its server, by the lease's proof that it is ours."""
        with contextlib.suppress(AssertionError, BalsamError, OSError, psutil.Error):
            lease = LeaseObserver(self.db.dir).observe().lease
            if lease is None:
                return None
            _ = self.db.lease  # notes it for the end
            found = psutil.Process(lease.pid if role == "watchdog" else lease.child_pid)
            if found.status() != psutil.STATUS_ZOMBIE and (role == "watchdog" or found.pid != 0):
                return found
        return None

    def _kill(self, role: str, victim: psutil.Process, victims: list[psutil.Process]) -> None:
        """Kill a process; a command of a writer dies with it."""
        for program in [*self._writers, *self._launchers]:
            if program.process.pid == victim.pid:
                program.killed = True
        self._left += victims
        _signal(signal.SIGKILL, [victim] if role == "launcher" else victims)

    def _back_up(self) -> None:
        file = self.directory / f"{len(self.backups)}.backup"
        began = time.monotonic()
        words = ["backup", str(file), "--db", str(self.db.path)]
        self.backups.append((file, began, self._start(f"backup{len(self.backups)}", [*BALSAM, *words])))

    def _heal(self, now: float) -> None:
        """End the faults that are due."""
        due = [heal for at, heal in self._heals if at <= now]
        self._heals = [(at, heal) for at, heal in self._heals if at > now]
        for heal in due:
            heal()

    def _write(self, text: str) -> None:
        with (self.directory / "done.log").open("a") as file:
            file.write(f"{time.monotonic():.3f} {text}\n")

    # ---- the end

    def _finish(self) -> None:
        """End all faults, then writers and launchers; let a last launcher do what is left."""
        self._heal(float("inf"))
        self._stop.touch()
        self._write("healed")
        if self.served:
            wait_until(self._server_answers, "the server's start", seconds=PATIENCE)
        for program in [*self._writers, *[one for *_, one in self.backups], *self._launchers]:
            if program in self._launchers:
                _signal(signal.SIGTERM, [program.process])
            wait_until(partial(_has_ended, program), f"the end of {program.name}", seconds=PATIENCE)
            self._note_end(program)
        _, alive = psutil.wait_procs(self._left, timeout=PATIENCE)
        assert not alive, alive
        self._writers.clear()
        self._launchers.clear()
        if self.load.env:  # what comes now is done by the rules
            self._env, self.db.env = {}, {}
            if self.served:
                self.db.stop()
                self.db.start()
        wait_until(self._all_closed, "the end of the launchers", seconds=PATIENCE)
        last = self._start_launcher(8)
        self._launchers.append(last)
        wait_until(partial(_has_ended, last), "the last launcher", seconds=PATIENCE)
        self._note_end(last)
        if last.process.returncode not in {0, JobsFailed.exit_code}:
            self.problems.append(f"the last launcher ended with {last.process.returncode}")

    def _server_answers(self) -> bool:
        return (self._starter is None or self._starter.ended) and self.db.command().code == 0

    def _all_closed(self) -> bool:
        """End the launchers that have not signed off, of which none lives; say whether that has worked."""
        try:
            end_dead_launchers(self._opened.directory, self._opened.run)
            return not self._opened.run(calls.GetLaunchers())
        except BalsamError:
            return False

    def _end_all(self) -> None:
        """Leave no process, whatever happened."""
        self._heal(float("inf"))
        self._stop.touch()
        programs = [*self._writers, *self._launchers, *[one for *_, one in self.backups]]
        programs += [self._starter] if self._starter else []
        left = [process for one in programs if not one.ended for process in _tree(one.process)] + self._left
        _signal(signal.SIGKILL, left)
        psutil.wait_procs(left, timeout=30)


def _has_ended(program: Program) -> bool:
    return program.ended


def _tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and all its descendants."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(number: signal.Signals, processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


# -------------------------------------------------------------------------------------------------------------- verdict


def run_and_judge(
    setup: str, seed: int, directory: Path, databases: Path, *, seconds: float, longest: float, load: Load | None = None
) -> tuple[dict[str, list[str]], str]:
    """Run random faults on a new DB and judge what is left.

    Args:
        setup: One of :data:`SETUPS`.
        seed: Of plan and writers.
        directory: For the files of the run, an existing directory.
        databases: For the DBs, which are removed.
        seconds: The time in which faults begin.
        longest: Seconds that one may last.
        load: Who works; the default for None.

    Returns:
        What is wrong, by kind; and what was done.
    """
    kind, served = SETUPS[setup], setup != "sqlite direct"
    plan = make_plan(seed, seconds, served=served, longest=longest)
    with make_db(kind, databases / f"{setup} {seed}") as db:
        run = Run(db, directory, plan, load or Load(), seed, served=served, disk=FailIO(directory))
        try:
            run.run()
        finally:
            shutil.copytree(db.dir.log, directory / "log", dirs_exist_ok=True)
        calls_made = [call for path in sorted(directory.glob("w*.journal")) for call in read_journal(path)]
        with open_db(db.path) as opened:
            rows, events = read_database(opened)
        lines = read_log(directory / "runs.log")
        evidence = Evidence(calls_made, rows, events, lines)
        faults = judge(evidence, AT_THE_END)
        if kind == "sqlite":
            if served:
                db.stop()
            rows_by_sqlite(db.path)  # checks the file
    for file, began, program in run.backups:
        if program.process.returncode != 0:
            assert not file.exists(), f"a backup that failed left a file: {file}"
            continue
        for name, found in _judge_backup(kind, file, databases / f"{setup} {seed} restored", calls_made, began).items():
            faults.setdefault(name, []).extend(f"in {file.name}: {one}" for one in found)
    if run.problems:
        faults["ended"] = run.problems
    acked = sum(call.acked for call in calls_made)
    saved = sum(program.process.returncode == 0 for *_, program in run.backups)
    done = ", ".join(f"{number} {what}" for what, number in sorted(run.done.items()))
    text = (
        f"{sum(run.done.values())} faults ({done}): {len(calls_made)} calls, {acked} acked,"
        f" {sum(call.unknown for call in calls_made)} unknown; {len(rows)} jobs, {len(lines)} lines of their log,"
        f" {saved} backups restored"
    )
    return faults, text


def _judge_backup(kind: str, file: Path, path: Path, calls_made: list[Call], began: float) -> dict[str, list[str]]:
    """Restore a backup and judge it."""
    child.good("restore", file, path)
    with make_db(kind, path) as db:
        if kind != "sqlite":
            db.start()
        with open_db(path) as opened:
            rows, events = read_database(opened)
        return judge(Evidence(calls_made, rows, events, began=began), IN_A_BACKUP)
