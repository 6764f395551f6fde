"""Children run in sessions of their own and end with all that they started; what can't be started says why."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from resources import is_alive, wait_for_end

from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.launcher_journal import Journal, OwnJournal
from balsam_core.launcher.guardian import lease_clock
from balsam_core.launcher.process_events import Command, Ended, Refused, ShortageError, Started, Stuck
from balsam_core.launcher.processes import Processes
from balsam_core.testing.tools import wait_until

DEADLINE = 30.0  # seconds


@pytest.fixture
def processes():
    crowd = Processes()
    yield crowd
    crowd.close()


def start(processes, cwd, *argv, owner="job", **settings):
    wanted = {"env": dict(os.environ), "stdout": "o", "stderr": "e", **settings}
    return processes.start(Command(list(argv), cwd, **wanted), owner)


def events(processes, kind, count=1):
    """Wait for so many events of a kind."""
    found = []
    deadline = time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < deadline, f"no {kind.__name__} came"
        found += [event for event in processes.wait(0.2) if isinstance(event, kind)]
    return found


def ended(processes, count=1):
    """Wait for so many ends; give the owners and exit codes."""
    return [(event.owner, event.exit_code) for event in events(processes, Ended, count)]


def refused(processes, cwd, *argv, **settings):
    """Start what can't be started; give the error, wherever it is found."""
    try:
        start(processes, cwd, *argv, **settings)
    except (OSError, ValueError, ShortageError) as err:
        return err
    (event,) = events(processes, Refused)
    return event.error


def test_exit_codes_come_with_their_owner(processes, tmp_path):
    for code in (0, 3, 255):
        start(processes, tmp_path, "sh", "-c", f"exit {code}", owner=code)
    start(processes, tmp_path, "sh", "-c", "kill -9 $$", owner=-9)
    assert all(owner == code for owner, code in ended(processes, 4))
    assert not processes.running


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE])
def test_a_child_gets_default_signals_whatever_this_process_ignores_or_blocks(processes, tmp_path, number):
    before = signal.signal(number, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        start(processes, tmp_path, "sh", "-c", f"kill -{int(number)} $$")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(number, before)
    assert ended(processes) == [("job", -number)]


def test_output_and_errors_go_to_files_in_the_working_directory(processes, tmp_path):
    start(processes, tmp_path, "sh", "-c", "pwd; echo oops >&2")
    ended(processes)
    assert (tmp_path / "o").read_text() == f"{tmp_path}\n"
    assert (tmp_path / "e").read_text() == "oops\n"


def test_output_and_errors_may_share_a_file(processes, tmp_path):
    start(processes, tmp_path, "sh", "-c", "echo a; echo b >&2; echo c", stderr="o")
    ended(processes)
    assert (tmp_path / "o").read_text() == "a\nb\nc\n"


def test_a_commands_variables_come_over_those_that_all_have(tmp_path):
    crowd = Processes(environment={"PATH": "/usr/bin:/bin", "SHARED": "all", "BOTH": "all"})
    try:
        start(crowd, tmp_path, "sh", "-c", "echo $SHARED $BOTH $OWN", env={"BOTH": "own", "OWN": "own"})
        ended(crowd)
    finally:
        crowd.close()
    assert (tmp_path / "o").read_text() == "all own own\n"


def test_output_of_an_earlier_run_is_replaced(processes, tmp_path):
    (tmp_path / "o").write_text("a much longer text of an earlier run")
    start(processes, tmp_path, "echo", "new")
    ended(processes)
    assert (tmp_path / "o").read_text() == "new\n"


def test_a_child_gets_an_empty_input_a_session_and_default_signals(processes, tmp_path):
    script = "import os,signal; print(os.read(0, 1), os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGPIPE))"
    # Python itself ignores SIGPIPE, so that is asked of the kernel by a shell.
    start(processes, tmp_path, sys.executable, "-c", script)
    start(processes, tmp_path, "grep", "SigIgn", "/proc/self/status", stdout="signals")
    ended(processes, 2)
    assert (tmp_path / "o").read_text().startswith("b'' True ")
    ignored = int((tmp_path / "signals").read_text().split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


def test_a_child_inherits_no_descriptor_of_ours(processes, tmp_path):
    start(processes, tmp_path, "ls", "/proc/self/fd")
    ended(processes)
    assert len((tmp_path / "o").read_text().split()) <= 4  # three, and that of the directory that ls reads


def test_descriptors_that_our_parent_left_open_are_not_passed_on(tmp_path):
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    crowd = Processes()
    start(crowd, tmp_path, "sh", "-c", f"echo x >&{writing}")
    ((_, code),) = ended(crowd)
    crowd.close()
    os.close(reading)
    os.close(writing)
    assert code != 0


def test_our_own_directory_stays(processes, tmp_path):
    before = Path.cwd()
    start(processes, tmp_path, "true")
    assert "no such program" in str(refused(processes, tmp_path, "no-such-program-anywhere"))
    ended(processes)
    assert Path.cwd() == before


@pytest.mark.parametrize(
    ("make", "argv", "why"),
    [
        (None, ["no-such-program-anywhere"], "no such program in PATH"),
        (None, ["./missing"], r"can't run './missing': no such file or directory"),
        (("plain", "text", 0o644), ["./plain"], "not executable"),
        (("script", "#!/no/such/shell\n", 0o755), ["./script"], "interpreter that its first line names is missing"),
        (("script", "echo no first line\n", 0o755), ["./script"], "no program; a script needs a first line"),
        (None, ["/"], "permission denied"),
    ],
)
def test_what_cannot_be_run_says_why(processes, tmp_path, make, argv, why):
    if make:
        name, text, mode = make
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    error = refused(processes, tmp_path, *argv)
    assert isinstance(error, OSError)
    assert re.search(why, str(error))
    assert not processes.running


def test_a_word_that_no_program_can_get_is_refused(processes, tmp_path):
    error = refused(processes, tmp_path, "echo", "a\0b")
    assert isinstance(error, ValueError)
    assert "null" in str(error)


def test_a_command_line_that_is_too_long_says_so(processes, tmp_path):
    assert "argument list too long" in str(refused(processes, tmp_path, "echo", "x" * 200_000))


def test_a_missing_working_directory_says_so(processes, tmp_path):
    assert "can't enter the working directory" in str(refused(processes, tmp_path / "gone", "true"))


@pytest.mark.parametrize("plant", ["link", "pipe", "directory"])
def test_a_planted_output_file_is_refused(processes, tmp_path, plant):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    {
        "link": lambda: (tmp_path / "o").symlink_to(victim),
        "pipe": lambda: os.mkfifo(tmp_path / "o"),
        "directory": (tmp_path / "o").mkdir,
    }[plant]()
    assert "can't write o" in str(refused(processes, tmp_path, "echo", "overwritten"))
    assert victim.read_text() == "precious"


def test_a_python_script_needs_no_executable_bit(processes, tmp_path):
    (tmp_path / "job.py").write_text("import sys; print(sys.executable, *sys.argv)")
    start(processes, tmp_path, "./job.py", "a", stdout="by_path")
    start(processes, tmp_path, "job.py", "b", stdout="by_name")
    ended(processes, 2)
    assert (tmp_path / "by_path").read_text() == f"{sys.executable} ./job.py a\n"
    assert (tmp_path / "by_name").read_text() == f"{sys.executable} job.py b\n"


def test_an_executable_python_script_chooses_its_own_interpreter(processes, tmp_path):
    script = tmp_path / "job.py"
    script.write_text("#!/bin/sh\necho shell\n")
    script.chmod(0o755)
    start(processes, tmp_path, str(script))
    ended(processes)
    assert (tmp_path / "o").read_text() == "shell\n"


def test_the_program_is_searched_in_the_jobs_own_path(processes, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "tool").chmod(0o755)
        start(processes, tmp_path, "tool", env={"PATH": f"{tmp_path / name}:/bin:/usr/bin"}, stdout=f"{name}.out")
    ended(processes, 2)
    assert [(tmp_path / f"{name}.out").read_text() for name in ("one", "two")] == ["one\n", "two\n"]


def test_a_program_that_moved_is_found_again(processes, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    env = {"PATH": f"{tmp_path / 'one'}:{tmp_path / 'two'}:/bin:/usr/bin"}
    tool = tmp_path / "one" / "tool"
    tool.write_text("#!/bin/sh\n")
    tool.chmod(0o755)
    for _ in range(2):
        start(processes, tmp_path, "tool", env=env)
        assert ended(processes) == [("job", 0)]
        tool = tool.rename(tmp_path / "two" / "tool")


def pid_in(file):
    """Wait until a process has written its id into a file."""
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), f"the process that writes {file.name}")
    return int(file.read_text())


DAEMON = (
    "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork() and os._exit(0); "
    "print(os.getpid(), flush=True); time.sleep(600)"
)
TREES = {
    "background": "sleep 600 & echo $!",
    "own group": "set -m; sleep 600 & echo $!",
    "own session": "setsid sleep 600 & echo $!",
    "under timeout": "timeout 600 sh -c 'echo $$; exec sleep 600' &",
    "double fork": f"{sys.executable} -c '{DAEMON}'",
}


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_what_a_process_left_behind_is_ended_and_counted(processes, tmp_path, tree):
    start(processes, tmp_path, "bash", "-c", f"{tree}\nuntil test -s o; do sleep 0.01; done")
    (end,) = events(processes, Ended)
    assert (end.exit_code, end.why) == (0, "")
    assert end.left_behind == (2 if "timeout" in tree else 1)
    assert not is_alive(pid_in(tmp_path / "o"))


def test_what_ends_by_itself_was_not_left_behind(processes, tmp_path):
    start(processes, tmp_path, "sh", "-c", "sleep 0.05 & true")
    assert events(processes, Ended)[0].left_behind == 0


@pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
def test_a_request_ends_the_whole_tree(processes, tmp_path, tree):
    process = start(processes, tmp_path, "bash", "-c", f"{tree}\nwait; sleep 600")
    left = pid_in(tmp_path / "o")
    processes.end(process, grace=DEADLINE)
    (end,) = events(processes, Ended)
    assert (end.exit_code, end.why, end.left_behind) == (-signal.SIGTERM, "asked", 0)
    assert not is_alive(left)


STUBBORN = "trap '' TERM; echo $$; while :; do sleep 0.1; done"


def test_who_does_not_heed_sigterm_is_killed_after_the_grace(processes, tmp_path):
    process = start(processes, tmp_path, "sh", "-c", STUBBORN)
    pid_in(tmp_path / "o")
    processes.end(process, grace=0.2)
    assert ended(processes) == [("job", -signal.SIGKILL)]


def test_a_second_request_can_only_shorten_the_grace(processes, tmp_path):
    process = start(processes, tmp_path, "sh", "-c", STUBBORN)
    pid_in(tmp_path / "o")
    processes.end(process, grace=600.0)
    processes.end(process, grace=0.0)
    processes.end(process, grace=600.0)
    assert ended(processes) == [("job", -signal.SIGKILL)]


def test_a_stopped_process_hears_the_request_too(processes, tmp_path):
    process = start(processes, tmp_path, "sh", "-c", "echo $$; exec sleep 600")
    os.kill(pid_in(tmp_path / "o"), signal.SIGSTOP)
    processes.end(process, grace=DEADLINE)
    assert ended(processes) == [("job", -signal.SIGTERM)]


def test_what_had_ended_before_the_request_was_not_asked(processes, tmp_path):
    process = start(processes, tmp_path, "sh", "-c", "echo $$")
    wait_for_end([pid_in(tmp_path / "o")])
    processes.end(process, grace=DEADLINE)
    (end,) = events(processes, Ended)
    assert (end.exit_code, end.why) == (0, "")


def test_an_end_tells_when_it_was_and_what_was_used(processes, tmp_path):
    before = time.monotonic()
    burn = "import time; x = bytearray(50_000_000)\nwhile time.process_time() < 0.3: pass"
    start(processes, tmp_path, "sh", "-c", f"{sys.executable} -c '{burn}'; sleep 0.2")
    (end,) = events(processes, Ended)
    assert before < end.started_at < end.ended_at < time.monotonic()
    assert end.ended_at - end.started_at > 0.4
    assert 0.3 <= end.cpu < 5
    assert end.memory * (1 if sys.platform == "darwin" else 1024) > 50_000_000


def test_a_start_is_told_before_the_end(processes, tmp_path):
    start(processes, tmp_path, "sleep", "600", owner="long")
    start(processes, tmp_path, "true", owner="short")
    told = []
    while len(told) < 3:
        told += processes.wait(DEADLINE)
    assert sorted((event.owner, type(event).__name__) for event in told) == [
        ("long", "Started"),
        ("short", "Ended"),
        ("short", "Started"),
    ]


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system can't bind to cores")
def test_a_process_can_be_bound_to_cores(processes, tmp_path):
    core = max(os.sched_getaffinity(0))
    show = ("grep", "Cpus_allowed_list", "/proc/self/status")
    start(processes, tmp_path, *show, cores=[core])
    ended(processes)
    start(processes, tmp_path, *show, stdout="all")  # by the same keeper
    ended(processes)
    assert (tmp_path / "o").read_text().split()[1] == str(core)
    assert (tmp_path / "all").read_text().split()[1] != str(core) or len(os.sched_getaffinity(0)) == 1


def test_a_new_journal_of_the_same_launcher_keeps_the_runs(tmp_path):
    (tmp_path / "log").mkdir()
    directory = DBDir(path=tmp_path, db_type="sqlite", id="0" * 32)
    own = OwnJournal(directory, 5)
    for number in (1, 2):
        descriptor = own.make()
        own.write_head(os.getpid(), f"mark{number}")
        os.write(descriptor, f"ran {number} 1 0 itself\n".encode())
    own.close()
    journal = Journal(directory, 5)
    assert journal.head.mark == "mark2"
    assert [run.job for run in journal.runs()] == [1, 2]


def test_ends_are_in_the_journal_before_they_are_told(tmp_path):
    (tmp_path / "log").mkdir()
    directory = DBDir(path=tmp_path, db_type="sqlite", id="0" * 32)
    crowd = Processes(OwnJournal(directory, 5))
    start(crowd, tmp_path, "sh", "-c", "exit 3", label="17 2")
    start(crowd, tmp_path, "true")
    ended(crowd, 2)
    journal = Journal(directory, 5)
    assert list(journal.runs()) == [(17, 2, 3)]
    assert (journal.head.launcher, journal.head.guardian) == (os.getpid(), crowd.guardian_pid)
    assert not journal.has_farewell
    crowd.close()
    assert Journal(directory, 5).has_farewell


# ---- who keeps processes is lost


def test_nothing_runs_when_the_lease_is_over(processes, tmp_path):
    start(processes, tmp_path, "sh", "-c", "echo $$; exec sleep 600")
    pid = pid_in(tmp_path / "o")
    processes.lease.extend(lease_clock() + 0.2)
    (event,) = [one for one in events(processes, Started) if processes.lease.left() > 0]
    assert event.owner == "job"
    processes.lease.extend(lease_clock() + 0.2)
    (end,) = events(processes, Ended)
    assert (end.why, end.is_lost, is_alive(pid)) == ("lease", True, False)
    assert isinstance(refused(processes, tmp_path, "true"), ShortageError)
    processes.lease.extend(lease_clock() + 100)
    start(processes, tmp_path, "true")
    assert ended(processes) == [("job", 0)]


def keepers_of(processes):
    return [one.pid for one in psutil.Process(processes.guardian_pid).children()]


@pytest.mark.parametrize("victims", ["guardian", "keeper", "both"])
def test_a_lost_guardian_or_keeper_takes_the_tree_with_it(processes, tmp_path, victims):
    start(processes, tmp_path, "bash", "-c", f"{TREES['double fork']}\nsleep 600")
    left = pid_in(tmp_path / "o")
    events(processes, Started)
    keepers = keepers_of(processes)
    guardian = [processes.guardian_pid]
    for pid in {"guardian": guardian, "keeper": keepers, "both": guardian + keepers}[victims]:
        os.kill(pid, signal.SIGKILL)
    (end,) = events(processes, Ended)
    assert end.is_lost
    assert not is_alive(left)
    deadline = time.monotonic() + DEADLINE
    while isinstance(error := try_start(processes, tmp_path), ShortageError):  # until a new guardian can be started
        assert time.monotonic() < deadline, error
        list(processes.wait(0.05))
    assert ended(processes) == [("job", 0)]


def try_start(processes, cwd):
    try:
        start(processes, cwd, "true")
    except ShortageError as err:
        return err
    return None


PARENT = """
import os, sys
from pathlib import Path
from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.launcher_journal import OwnJournal
from balsam_core.launcher.process_events import Command
from balsam_core.launcher.processes import Processes
Path("log").mkdir()
crowd = Processes(OwnJournal(DBDir(path=Path.cwd(), db_type="sqlite", id="0" * 32), 5))
for name, script in eval(sys.argv[1]).items():
    cwd = Path(name).resolve()
    cwd.mkdir()
    crowd.start(Command(["bash", "-c", script + "\\nwait; sleep 600"], cwd, os.environ, "o", "e"), name)
while True:
    list(crowd.wait(1))
"""


def test_nothing_survives_a_killed_parent(tmp_path):
    names = {name.replace(" ", "-"): tree for name, tree in TREES.items()}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, repr(names)], cwd=tmp_path)
    pids = [pid_in(tmp_path / name / "o") for name in names]
    tree = [one.pid for one in psutil.Process(parent.pid).children(recursive=True)]
    parent.kill()
    parent.wait()
    wait_for_end([*pids, *tree], seconds=5)
    directory = DBDir(path=tmp_path, db_type="sqlite", id="0" * 32)
    wait_until(lambda: Journal(directory, 5).has_farewell, "the farewell")


def test_signals_to_all_processes_end_no_keeper(processes, tmp_path):
    start(processes, tmp_path, "true")
    ended(processes)
    for pid in [processes.guardian_pid, *keepers_of(processes)]:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
    start(processes, tmp_path, "true")
    assert ended(processes) == [("job", 0)]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs ptrace of another process")
def test_what_cannot_be_ended_is_told_and_awaited(processes, tmp_path, monkeypatch):
    # A traced process that was killed stays until its tracer looks at it.
    process = start(processes, tmp_path, "sh", "-c", "echo $$; exec sleep 600")
    pid = pid_in(tmp_path / "o")
    tracer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import ctypes; print(ctypes.CDLL(None).ptrace(0x4206, {pid}, 0, 0), flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert tracer.stdout.readline() == "0\n"
    processes.end(process, grace=0.0)
    (stuck,) = events(processes, Stuck)
    assert stuck.pids == [pid]
    assert processes.running == {process}
    tracer.communicate("\n")
    assert ended(processes) == [("job", -signal.SIGKILL)]


def test_close_leaves_nothing_behind(tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    crowd = Processes()
    for name in "abc":
        start(crowd, tmp_path, "sh", "-c", "echo $$; exec sleep 600", stdout=name)
    pids = [pid_in(tmp_path / name) for name in "abc"]
    pids += [crowd.guardian_pid, *keepers_of(crowd)]
    assert crowd.close()
    assert not any(is_alive(pid) for pid in pids)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_waiting_ends_in_time_when_nothing_happens(processes, tmp_path):
    start(processes, tmp_path, "sleep", "600")
    events(processes, Started)
    begin = time.monotonic()
    assert list(processes.wait(0.05)) == []
    assert time.monotonic() - begin >= 0.04


def test_too_few_descriptors_are_not_the_commands_fault(processes, tmp_path):
    start(processes, tmp_path, "true")
    ended(processes)
    (keeper,) = map(psutil.Process, keepers_of(processes))
    _, hard = keeper.rlimit(resource.RLIMIT_NOFILE)
    keeper.rlimit(resource.RLIMIT_NOFILE, (keeper.num_fds(), hard))
    assert isinstance(refused(processes, tmp_path, "true"), ShortageError)
    keeper.rlimit(resource.RLIMIT_NOFILE, (hard, hard))
    start(processes, tmp_path, "true")
    assert ended(processes) == [("job", 0)]
