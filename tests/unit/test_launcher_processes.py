"""Children run in sessions of their own and end with all that they started; what can't be started says why."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from resources import is_alive

from balsam_core.launcher import processes as module
from balsam_core.launcher.processes import Processes, ShortageError
from balsam_core.testing.tools import wait_until

DEADLINE = 30.0  # seconds


@pytest.fixture(params=["pidfd", "sigchld"])
def processes(request, monkeypatch):
    """Both ways to learn of a child's end."""
    if request.param == "pidfd" and not hasattr(os, "pidfd_open"):
        pytest.skip("this system has no pidfd")
    if request.param == "sigchld":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    crowd = Processes()
    crowd.watch(reading, lambda: os.read(reading, 4096))
    yield crowd
    crowd.close()
    signal.set_wakeup_fd(before)
    os.close(reading)
    os.close(writing)


def start(processes, cwd, *argv, owner="job", **settings):
    wanted = {"env": dict(os.environ), "stdout": "o", "stderr": "e", **settings}
    return processes.start(list(argv), cwd=cwd, owner=owner, **wanted)


def ended(processes, count=1):
    """Wait for so many ends."""
    found = []
    deadline = time.monotonic() + DEADLINE
    while len(found) < count:
        assert time.monotonic() < deadline, "the processes did not end"
        processes.kill_overdue()
        found += processes.wait(0.2)
    return found


def test_exit_codes_come_with_their_owner(processes, tmp_path):
    for code in (0, 3, 255):
        start(processes, tmp_path, "sh", "-c", f"exit {code}", owner=code)
    start(processes, tmp_path, "sh", "-c", "kill -9 $$", owner=-9)
    assert all(owner == code for owner, code in ended(processes, 4))
    assert processes.running == {}


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
    with pytest.raises(OSError, match="no such program"):
        start(processes, tmp_path, "no-such-program-anywhere")
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
    with pytest.raises(OSError, match=why):
        start(processes, tmp_path, *argv)
    assert processes.running == {}


def test_a_word_that_no_program_can_get_is_refused(processes, tmp_path):
    with pytest.raises(ValueError, match="null"):
        start(processes, tmp_path, "echo", "a\0b")


def test_a_command_line_that_is_too_long_says_so(processes, tmp_path):
    with pytest.raises(OSError, match="argument list too long"):
        start(processes, tmp_path, "echo", "x" * 200_000)


def test_a_missing_working_directory_says_so(processes, tmp_path):
    with pytest.raises(OSError, match="can't enter the working directory"):
        start(processes, tmp_path / "gone", "true")


@pytest.mark.parametrize("plant", ["link", "pipe", "directory"])
def test_a_planted_output_file_is_refused(processes, tmp_path, plant):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    {
        "link": lambda: (tmp_path / "o").symlink_to(victim),
        "pipe": lambda: os.mkfifo(tmp_path / "o"),
        "directory": (tmp_path / "o").mkdir,
    }[plant]()
    with pytest.raises(OSError, match="can't write o"):
        start(processes, tmp_path, "echo", "overwritten")
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


def test_children_that_a_process_left_behind_are_killed(processes, tmp_path):
    start(processes, tmp_path, "sh", "-c", "sleep 600 & echo $!")
    ended(processes)
    left = int((tmp_path / "o").read_text())
    wait_until(lambda: not is_alive(left))


def test_terminate_ends_the_whole_group(processes, tmp_path):
    process = start(processes, tmp_path, "sh", "-c", "sleep 600 & echo $!; wait")
    wait_until(lambda: (tmp_path / "o").read_text().endswith("\n"))
    processes.terminate(process, grace=DEADLINE)
    assert ended(processes) == [("job", -signal.SIGTERM)]
    wait_until(lambda: not is_alive(int((tmp_path / "o").read_text())))


def test_who_does_not_heed_sigterm_is_killed_after_the_grace(processes, tmp_path):
    process = start(processes, tmp_path, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: (tmp_path / "o").read_text() == "ready\n")
    processes.terminate(process, grace=0.2)
    assert ended(processes) == [("job", -signal.SIGKILL)]


def test_a_second_request_can_only_shorten_the_grace(processes, tmp_path):
    process = start(processes, tmp_path, "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
    wait_until(lambda: (tmp_path / "o").read_text() == "ready\n")
    processes.terminate(process, grace=600.0)
    processes.terminate(process, grace=0.0)
    processes.terminate(process, grace=600.0)
    assert ended(processes) == [("job", -signal.SIGKILL)]


def test_a_stopped_process_hears_the_request_too(processes, tmp_path):
    process = start(processes, tmp_path, "sleep", "600")
    os.killpg(process.pid, signal.SIGSTOP)
    processes.terminate(process, grace=DEADLINE)
    assert ended(processes) == [("job", -signal.SIGTERM)]


def test_close_leaves_nothing_behind(tmp_path):
    crowd = Processes()
    pids = [start(crowd, tmp_path, "sleep", "600").pid for _ in range(3)]
    before = len(list(Path("/proc/self/fd").iterdir()))
    crowd.close()
    assert not any(is_alive(pid) for pid in pids)
    assert len(list(Path("/proc/self/fd").iterdir())) < before


def test_waiting_ends_in_time_when_nothing_happens(processes, tmp_path):
    start(processes, tmp_path, "sleep", "600")
    begin = time.monotonic()
    assert list(processes.wait(0.05)) == []
    assert time.monotonic() - begin >= 0.04


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE])
def test_a_shortage_of_the_machine_is_not_the_commands_fault(processes, tmp_path, monkeypatch, number):
    def fail(*_args, **_settings):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module.os, "posix_spawn", fail)
    with pytest.raises(ShortageError):
        start(processes, tmp_path, "true")


def test_a_shortage_of_descriptors_for_output_is_not_the_commands_fault(processes, tmp_path, monkeypatch):
    real = os.open

    def fail(path, *args, **settings):
        if path == "e":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, *args, **settings)

    monkeypatch.setattr(module.os, "open", fail)
    with pytest.raises(ShortageError):
        start(processes, tmp_path, "true")
