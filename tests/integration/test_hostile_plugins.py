"""Plugins that do all they can to be in the way, many installed at once: no command that is not theirs notices.

A command that uses one can't be guarded against changed library functions; a listing is.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from balsam_program import child, here
from plugin_site import ENGINE

from balsam_core.backends import registry
from balsam_core.plugin_types import ServerPlan
from balsam_core.system.processes import start_of
from balsam_core.testing.tools import wait_until

BACKEND = 12  # exit code
BEFORE = "from balsam_core.plugin import DBType, ServerPolicy, hookimpl\n"


def identity(fields):
    """A module that says something strange of itself."""
    return f"{BEFORE}\n@hookimpl\ndef balsam_db_type():\n    return {fields}\n"


def engine(name, old="", new=""):
    """A complete backend, changed in one place."""
    source = ENGINE.replace("{name}", name)
    assert old in source
    return source.replace(old, new) if old else source


# Name -> source and what a user of it is told. None of them can be used.
UNUSABLE = {
    "raises": ("1 / 0", "ZeroDivisionError"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "quits": ("raise SystemExit", "SystemExit"),
    "interrupts": ("class Mine(KeyboardInterrupt): pass\nraise Mine('no')", "Mine: no"),
    "ctrlc": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "ctrlcinidentity": ("def balsam_db_type(): raise KeyboardInterrupt('mine')", "KeyboardInterrupt: mine"),
    "unspeakable": ("class Mute(Exception):\n    def __str__(self): 1 / 0\nraise Mute", "Mute: it can't be shown"),
    "endless": ("raise ValueError('x' * 10_000_000)", "ValueError: xxx"),
    "steers": ("raise ValueError('\\x1b[31m\\x07\\n\\r evil')", "ValueError: "),
    "syntax": ("def (", "SyntaxError"),
    "nulls": ("\0", "null bytes"),
    "warns": (
        "import warnings as w\nwith w.catch_warnings():\n    w.simplefilter('error')\n    w.warn('careful')",
        "UserWarning: careful",
    ),
    "recursive": ("def f(): f()\nf()", "RecursionError"),
    "needs": ("import no_such_library", "No module named 'no_such_library'"),
    "hookless": ("", "balsam_db_type"),
    "identityraises": ("def balsam_db_type(): raise OSError(2, 'gone')", "gone"),
    "identityexits": ("def balsam_db_type(): raise SystemExit(0)", "SystemExit: 0"),
    "identitynone": ("def balsam_db_type(): return None", "returned NoneType, not DBType"),
    "identityclass": (f"{BEFORE}balsam_db_type = lambda: DBType", "returned type, not DBType"),
    "identityargs": ("def balsam_db_type(a, b): return 1", "TypeError"),
    "identitynotcallable": ("balsam_db_type = 7", "TypeError"),
    "badtitle": (engine("badtitle", '"Toy"', r"'\x1b[2J'"), "the title must be printable"),
    "hugetitle": (engine("hugetitle", '"Toy"', "'x' * 10**6"), "the title must be printable"),
    "badserver": (identity("DBType(name='badserver', title='T', server='none', plugin_api=1)"), "must be of type"),
    "badoptions": (
        identity("DBType(name='badoptions', title='T', server=ServerPolicy.NONE, plugin_api=1, options=5)"),
        "options must be of type Mapping",
    ),
    "othername": (engine("sqlite"), "calls itself sqlite"),
    "tooold": (engine("tooold", "plugin_api=1", "plugin_api=0"), "pip install -U acme-tooold"),
    "toonew": (engine("toonew", "plugin_api=1", "plugin_api=99"), "pip install -U balsam-core"),
    "apitext": (engine("apitext", "plugin_api=1", "plugin_api='1'"), "plugin_api must be of type int"),
    "lacks": (engine("lacks", "def balsam_init_db", "def init_db"), "it lacks the hook balsam_init_db"),
    "signature": (engine("signature", "(db, options)", "(db, optoins)"), "optoins"),
    "unknownhook": (engine("unknownhook") + "\n@hookimpl\ndef balsam_rule_the_world(): ...\n", "balsam_rule_the_world"),
    "driverless": (engine("driverless", "plugin_api=1", "plugin_api=1, driver='no_such_driver'"), "no_such_driver"),
    "strangemodule": (
        engine("strangemodule")
        + "\nclass Strange:\n    def __getattr__(self, name): raise SystemError(name)\nstrange = Strange()\n"
        + "def __getattr__(name): raise RuntimeError(name)\ndef __dir__(): return ['a', 'balsam_db_type']\n",
        "it lacks the hook balsam_",
    ),
}

MEDDLES = {
    "prints": "print('HELLO'); import sys; sys.stdout.write('HELLO'); sys.stdout.flush()",
    "replacesstreams": "import sys, io; sys.stdout = io.StringIO(); sys.stderr = io.StringIO()",
    "clearspath": "import sys; sys.path.clear(); sys.path_hooks.clear(); sys.meta_path.clear()",
    "rebindspath": "import sys; sys.path = []; sys.argv[:] = ['x']",
    "clearsenvironment": "import os; os.environ.clear(); os.environ['BALSAM_DB_PATH'] = '/nowhere'",
    "moves": "import os; os.chdir('/'); os.umask(0)",
    "hooks": "import sys, threading; sys.excepthook = threading.excepthook = None",
    "shallow": "import sys; sys.setrecursionlimit(100)",
    "logs": (
        "import logging, sys; logging.basicConfig(stream=sys.stdout, level=1); logging.error('HELLO'); "
        "logging.disable()"
    ),
    "quietens": "import warnings; warnings.simplefilter('ignore'); warnings.warn('HELLO', stacklevel=1)",
}
"""Usable backends that change the process at import: name -> how."""

CRASHES = {
    "leaves": ("import os; os._exit(0)", "loading it ended the process with exit code 0"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "loading it ended the process by SIGSEGV"),
    "aborts": ("import os; os.abort()", "loading it ended the process by SIGABRT"),
    "killsitself": ("import os; os.kill(os.getpid(), 9)", "loading it ended the process by SIGKILL"),
    "closesall": ("import os; os.closerange(0, 1000)", "loading it ended the process with exit code"),
    "leavesinidentity": ("def balsam_db_type():\n    import os\n    os._exit(3)", "exit code 3"),
}
"""Backends that end the process that loads them: name -> code, what a listing says."""
WRITES = "import os, subprocess; os.write(1, b'HELLO'); subprocess.run(['echo', 'HELLO']); print('HELLO')\n"

METADATA = {
    "garbage": b"\xff\xfe[balsam.backends]\n\x00 = \x00\n",
    "unclosed": "[balsam.backends\nx = y\n",
    "valueless": "[balsam.backends]\nvalueless\n",
    "empty": "[balsam.backends]\nempty =\n",
    "attribute": "[balsam.backends]\nattribute = os:getcwd\n",
    "missing": "[balsam.backends]\nmissing = acme_no_such_module\n",
    "nested": "[balsam.backends]\nnested = os.path.nothing.here\n",
    "relative": "[balsam.backends]\nrelative = .evil\n",
    "words": "[balsam.backends]\nwords = a b c ???\n",
    "alias": "[balsam.backends]\nmariadb = acme_alias_plugin\n",
    "upper": "[balsam.backends]\nUpper = acme_upper_plugin\n",
    "control": "[balsam.backends]\nev\x1b[31mil = acme_control_plugin\n",
    "giant": f"[balsam.backends]\n{'g' * 100_000} = acme_giant_plugin\n",
    "many": "[balsam.backends]\n" + "".join(f"many{n} = acme_many_plugin\n" for n in range(50)),
}

HOOKS = {
    "balsam_init_db": "(db, options)",
    "balsam_open_transport": "(db, address)",
    "balsam_create_engine": "(db, address, role)",
    "balsam_server_policy": "(db)",
    "balsam_commands": "(group)",
}
MISDEEDS = {
    "raise ValueError('a\\nb\\x1b[31m')": "failed in {hook}: ValueError: a b",
    "raise SystemExit(0)": "failed in {hook}: SystemExit: 0",
    "class Mine(KeyboardInterrupt): pass\n    raise Mine('no')": "failed in {hook}: Mine: no",
    "return object()": "is broken: {hook} returned object",
    "return 'x' * 10**7": "is broken: {hook} returned str",
}


@pytest.fixture
def balsam(site, tmp_path):
    def run(*words, env=None, **settings):
        variables = {**site.environment, "XDG_STATE_HOME": str(tmp_path / "state"), **(env or {})}
        return child(*words, db=tmp_path / "db", env=variables, **settings)

    return run


@pytest.fixture
def inside(site, tmp_path, monkeypatch):
    """The program in this process, which is faster; for plugins that do no more to it than to fail."""
    known = set(sys.modules)
    monkeypatch.syspath_prepend(site.path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    registry.installed.cache_clear()
    yield lambda *words: here(*words, db=tmp_path / "db")
    registry.installed.cache_clear()
    for module in set(sys.modules) - known:
        if module.endswith("_plugin"):
            del sys.modules[module]


def install_all(site):
    for name, (code, _) in UNUSABLE.items():
        site.add(name, code)
    for name, code in MEDDLES.items():
        site.add(name, f"{engine(name)}\n{code}")
    for name, points in METADATA.items():
        site.add(name, entry_points=points)
    site.add("twice", package="acme-twice")
    site.add("twice", package="other-twice")
    site.add("sqlite3", package="acme-squatter")
    site.add("ls", package="acme-ls", more="raise SystemExit('I was loaded')")
    site.add("metaless", metadata="")
    site.add("metagarbage", metadata="\x1b[31m\n" * 1000 + "Name: x\n")


def told(done):
    """The one line that the program ended with."""
    assert (done.code, done.out) == (BACKEND, ""), done
    assert done.err.startswith("Error: "), done
    assert done.err.count("\n") == 1, done
    assert done.err.rstrip("\n").isprintable()
    assert len(done.err) < 3000
    return done.err


def session(run, folder):
    """What a user sees of an SQLite DB: the same with and without the plugins."""
    seen = []
    for words in (
        ["--help"],
        ["init", folder, "--db-type", "sqlite"],
        ["init", folder, "--db-type", "sqlite3"],
        ["app", "sim", "--executable", "true", "--db", folder],
        ["job", "--app", "sim", "--name", "one", "--db", folder],
        ["run", "--db", folder, "--", "true"],
        ["ls", "-o", "json", "--db", folder],
        ["launcher", "--consume-all", "--db", folder, "-o", "json"],
        ["ls", "--db", folder],
        ["kill", "1", "--db", folder],
        ["backup", f"{folder}.backup", "--db", folder],
        ["restore", f"{folder}.backup", f"{folder}2"],
        ["status", "--db", folder],
        ["nonsense"],
        ["init", f"{folder}3", "--db-type", "nonsense"],
    ):
        done = run(*words)
        text = f"{done.out}{done.err}".replace(str(folder), "DB")
        text = re.sub(r"installed: [^)]*", "installed: ...", text)
        seen.append((words[0], done.code, re.sub(r"\d", "9", re.sub(r"[0-9a-f]{32}|\"\w+\": *[0-9.e-]+", "ID", text))))
    return seen


def test_no_command_that_is_not_theirs_notices(site, balsam, tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    before = session(balsam, tmp_path / "1" / "db")
    install_all(site)
    after = session(balsam, tmp_path / "2" / "db")
    for old, new in zip(before, after, strict=True):
        assert new == old


def test_the_listing_tells_of_each_and_the_check_too(site, balsam):
    install_all(site)
    good_before = {row["name"]: row for row in balsam("plugins", "list", "-o", "json").json}
    assert good_before["sqlite"]["status"] == "ok"
    for command, code in (("list", 0), ("check", 1)):
        done = balsam("plugins", command, "-o", "json")
        assert done.code == code, done.err[-2000:]
        rows = {row["name"]: row for row in done.json}
        for name, (_, words) in UNUSABLE.items():
            row = rows[name]
            assert row["status"] in {"broken", "incompatible", "driver missing"}, row
            assert words in row["detail"] + row["remedy"], row
            assert row["package"] == f"acme-{name}"
            assert row["remedy"]
            assert len(row["detail"]) < 1500
        assert {name: rows[name]["detail"] for name in MEDDLES if rows[name]["status"] != "ok"} == {}
        assert "acme-twice" in rows["twice"]["package"]
        assert "other-twice" in rows["twice"]["package"]
        assert rows["sqlite"]["status"] == "ok"
        for form in ("table", "csv", "ids"):
            done = balsam("plugins", command, "-o", form)
            assert done.code == code
            assert "HELLO" not in done.out
            assert form == "csv" or done.out.replace("\n", "").isprintable()  # CSV holds texts as they are
            assert "Traceback" not in done.err, done.err[-2000:]


def test_what_the_plugin_in_use_prints_never_reaches_the_output(site, balsam, tmp_path):
    writes = WRITES.strip()
    code = f"{WRITES}{engine('toy')}".replace("    return ", f"    {writes}\n    return ")
    own = """
@hookimpl
def balsam_commands(group):
    print("HELLO")

    @group.command()
    def hello():
        print("hello from the toy")
"""
    site.add("toy", code, more=own)
    for words in (
        ["init", tmp_path / "db", "--db-type", "toy", "-o", "json"],
        ["run", "-o", "json", "--", "true"],
        ["ls", "-o", "json"],
        ["launcher", "--consume-all", "-o", "json"],
        ["status", "-o", "json"],
        ["plugins", "list", "-o", "json"],
    ):
        done = balsam(*words)
        assert done.code == 0, done
        assert done.json
        assert "HELLO" in done.err or words[0] in {"status", "plugins"}
    for form in ("table", "csv", "ids", "jsonl"):
        assert "HELLO" not in balsam("ls", "-o", form).out
    assert balsam("toy", "hello").out == "hello from the toy\n", "its own command may print"
    assert balsam("ls", "--no-such-option").out == ""


def test_what_the_plugin_in_use_prints_at_the_end_never_reaches_the_output(site, balsam, tmp_path):
    late = """
        import atexit, ctypes, os, sys

        ctypes.CDLL(None).printf(b"HELLO")  # in a buffer until the process ends
        sys.__stdout__.write("HELLO")
        atexit.register(print, "HELLO")
        atexit.register(os.write, 1, b"HELLO")
    """
    site.add("toy", more=late)
    for words, code in (
        (["init", tmp_path / "db", "--db-type", "toy", "-o", "json"], 0),
        (["run", "-o", "json", "--", "true"], 0),
        (["ls", "-o", "json"], 0),
        (["show", "99", "-o", "json"], 3),
    ):
        done = balsam(*words)
        assert done.code == code, done
        assert done.json if code == 0 else done.out == "", done
        assert done.err.count("HELLO") >= 4, done


def test_one_that_ends_the_process_is_an_error_of_each_command(site, balsam, tmp_path):
    site.add("toy")
    assert balsam("init", tmp_path / "db", "--db-type", "toy").code == 0
    module = site.path / "acme_toy_plugin.py"
    for code, words in CRASHES.values():
        module.write_text(f"{engine('toy')}\n{code}")
        line = told(balsam("ls"))
        assert "acme-toy 1.0" in line
        assert words in line
    for words in (
        ["init", tmp_path / "new", "--db-type", "toy"],
        ["init", tmp_path / "db"],
        ["job", "--name", "x", "--command", "true"],
        ["launcher", "--consume-all"],
        ["dbserver"],
        ["status"],
        ["backup", tmp_path / "saved"],
        ["toy", "hello"],
    ):
        assert "acme-toy 1.0" in told(balsam(*words)), words
    module.write_text(f"{engine('toy')}\n")
    assert balsam("ls", "-o", "json").json == []


def test_a_plugin_in_use_is_looked_at_once(site, balsam, tmp_path):
    log = tmp_path / "loaded"
    site.add("toy", f"import os\nopen({str(log)!r}, 'a').write(f'{{os.getpid()}} ')\n{engine('toy')}")
    assert balsam("init", tmp_path / "db", "--db-type", "toy").code == 0
    assert len(log.read_text().split()) == 2, "in a process of its own, then in this one"
    assert balsam("ls").code == 0
    assert balsam("plugins", "list").code == 0
    assert len(log.read_text().split()) == 3
    other = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{site.environment['PYTHONPATH']}"}
    for _ in range(3):  # programs with different paths
        assert balsam("ls", env=other).code == 0
        assert balsam("ls").code == 0
    assert len(log.read_text().split()) == 3 + 1 + 6


@pytest.mark.parametrize("command", ["list", "check"])
def test_one_that_ends_the_process_harms_nobody(site, balsam, command):
    for name, (code, _) in CRASHES.items():
        site.add(name, f"{engine(name)}\n{code}")
    site.add("zwrites", f"{WRITES}{engine('zwrites')}")
    child = "import subprocess; subprocess.Popen(['sleep', '60'], close_fds=False, start_new_session=True)\n"
    site.add("zforks", f"{child}{engine('zforks')}")
    done = balsam("plugins", command, "-o", "json")
    rows = {row["name"]: row for row in done.json}
    assert done.code == int(command == "check")
    for name, (_, words) in CRASHES.items():
        assert (rows[name]["status"], rows[name]["package"]) == ("broken", f"acme-{name}")
        assert words in rows[name]["detail"]
        assert f"acme-{name}" in rows[name]["remedy"]
    assert rows["sqlite"]["status"] == rows["zwrites"]["status"] == rows["zforks"]["status"] == "ok"


def test_an_interrupted_listing_leaves_no_process(site, tmp_path):
    note = tmp_path / "pid"
    site.add("hangs", f"import os, time\nopen({str(note)!r}, 'w').write(str(os.getpid()))\nwhile True: time.sleep(1)")
    environment = {**os.environ, **site.environment, "XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "balsam_core.cli", "plugins", "list"]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True) as running:
        wait_until(lambda: note.exists() and note.read_text())
        running.send_signal(signal.SIGINT)
        _, errors = running.communicate(timeout=30)  # ends only when nobody holds stderr
    assert (running.returncode, errors) == (130, b"")
    wait_until(lambda: start_of(int(note.read_text())) is None)


def test_what_is_printed_at_the_start_of_the_interpreter_is_no_report(site, balsam, tmp_path):
    (site.path / "sitecustomize.py").write_text("print('HELLO', end='')\n")
    done = balsam("plugins", "check", "sqlite", "-o", "ids")
    assert (done.code, done.out.removeprefix("HELLO")) == (0, "sqlite\n"), done


def test_a_cache_that_is_no_file_is_not_read(balsam, tmp_path):
    cache = tmp_path / "cache"
    (cache / "balsam").mkdir(parents=True)
    os.mkfifo(cache / "balsam" / "plugins.json")
    assert "sqlite" in balsam("plugins", "list", env={"XDG_CACHE_HOME": str(cache)}).out


def test_an_earlier_listing_is_used_until_a_file_changes(site, balsam, tmp_path):
    log = tmp_path / "loaded"
    marker = f"open({str(log)!r}, 'a').write('x')\n"
    site.add("toy", f"{marker}{engine('toy')}")

    def listed():
        return {row["name"]: row["status"] for row in balsam("plugins", "list", "-o", "json").json}["toy"]

    assert [listed(), listed(), log.read_text()] == ["ok", "ok", "x"]
    module = site.path / "acme_toy_plugin.py"
    module.write_text(f"{marker}1 / 0\n")
    assert [listed(), listed(), log.read_text()] == ["broken", "broken", "xxx"], "a fault is looked at again"
    module.write_text(f"{marker}{engine('toy')}")
    assert [listed(), listed(), log.read_text()] == ["ok", "ok", "xxxx"]
    assert balsam("plugins", "check", "toy").code == 0
    assert log.read_text() == "xxxxx", "a check looks itself"


def test_the_official_package_keeps_its_name(site, balsam, tmp_path):
    site.add("sqlite", "raise SystemExit('I was loaded')", package="acme-squatter")
    assert balsam("init", tmp_path / "db").code == 0
    row = {row["name"]: row for row in balsam("plugins", "list", "-o", "json").json}["sqlite"]
    assert (row["status"], row["package"]) == ("ok", "balsam-sqlite")
    assert "acme-squatter 1.0" in row["detail"]
    assert row["remedy"] == "pip uninstall acme-squatter"
    assert "acme-squatter" in balsam("plugins", "list").out


def test_a_listing_leaves_the_process_as_it_was(site, tmp_path, monkeypatch):
    import logging
    import warnings

    for name, code in MEDDLES.items():
        site.add(name, f"{engine(name)}\n{code}")
    monkeypatch.syspath_prepend(site.path)
    monkeypatch.chdir(tmp_path)

    def state():
        umask = os.umask(0o077)
        os.umask(umask)
        root = logging.getLogger()
        return [
            dict(os.environ), list(sys.path), list(sys.meta_path), list(sys.path_hooks), sys.argv[:], Path.cwd(), umask,
            sys.excepthook, sys.stdout, sys.stderr, sys.getrecursionlimit(), root.level, root.handlers[:],
            logging.root.manager.disable, warnings.filters[:],
        ]  # fmt: skip

    before = state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {row.name: row.status for row in registry.Registry().statuses()}
    assert {found[name] for name in MEDDLES} == {"ok"}
    assert state() == before
    assert not [name for name in sys.modules if name.startswith("acme_")]


@pytest.mark.parametrize("name", UNUSABLE)
def test_who_uses_one_is_told_what_to_do(site, inside, tmp_path, name):
    code, words = UNUSABLE[name]
    site.add(name, code, version="2.7")
    line = told(inside("init", tmp_path / "db", "--db-type", name))
    assert f"acme-{name} 2.7" in line
    assert words in line
    assert "pip install" in line
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("deed", MISDEEDS)
def test_a_hook_that_misbehaves_is_one_line_about_its_package(site, inside, tmp_path, hook, deed):
    body = f"\n@hookimpl\ndef {hook}{HOOKS[hook]}:\n    {deed}\n"
    site.add("toy", more=body)
    made = inside("init", tmp_path / "db", "--db-type", "toy")
    if hook in {"balsam_init_db", "balsam_create_engine", "balsam_server_policy"}:
        line = told(made)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["site"], "something is left"
    elif hook == "balsam_commands":
        line = told(inside("toy", "--help"))
    else:
        assert made.code == 0, made
        line = told(inside("ls"))
    assert "acme-toy 1.0 " + MISDEEDS[deed].format(hook=hook) in line


@pytest.mark.parametrize(
    "settings", ["{1: 2}", "{'a': None}", "{'a': 'x' * 10**6}", "{'a\\ud800': 'b'}", "[]", "None", "dict"]
)
def test_settings_that_can_not_be_stored_leave_no_db(site, inside, tmp_path, settings):
    site.add("toy", engine("toy", "return real.balsam_init_db(db, options)", f"return {settings}"))
    line = told(inside("init", tmp_path / "db", "--db-type", "toy"))
    assert "acme-toy 1.0 is broken: balsam_init_db returned " in line
    assert not (tmp_path / "db").exists()


@pytest.mark.parametrize(
    "fields",
    [
        "argv=None", "argv=[]", "argv='sleep 60'", "argv=[1, 2]", "port='x'", "port=-1", "port=70000", "host=None",
        "host=''", "is_ready=None", "stop=5", "stop=['x']", "env={1: 2}", "env=3", "cwd='/no'", "user=0",
        "ready_timeout='x'", "details=7", "protocol=None",
    ],
)  # fmt: skip
def test_a_plan_of_nonsense_can_not_be_made(fields):
    good = {"argv": ["true"], "host": "h", "port": 1, "protocol": "toy", "is_ready": lambda seconds: True}
    ServerPlan(**good)
    with pytest.raises((TypeError, AttributeError)):
        ServerPlan(**good | eval(f"dict({fields})"))


@pytest.mark.parametrize(
    "fields", ["argv=None", "argv=['/no/such/program']", "is_ready=lambda seconds: 1 / 0", "user='no-such-user'"]
)
def test_a_plan_that_can_not_work_is_told_in_a_line(site, balsam, tmp_path, fields):
    plan = """
        @hookimpl
        def balsam_start_server(db, host, port):
            from balsam_core.plugin import ServerPlan

            fields = dict(argv=["sleep", "60"], host=host, port=port, protocol="toy", is_ready=lambda seconds: False)
            return ServerPlan(**(fields | dict(FIELDS)))
    """
    code = engine("toy", "server=ServerPolicy.NONE", "server=ServerPolicy.OPTIONAL")
    site.add("toy", code, more=plan.replace("FIELDS", fields))
    assert balsam("init", tmp_path / "db", "--db-type", "toy").code == 0
    done = balsam("dbserver", "--path", tmp_path / "db")
    assert done.code not in {0, 1}, done
    assert (done.out, done.err.count("\n")) == ("", 1), done
    assert balsam("ls", "-o", "json").json == []


HANGS = {
    "hangs": "import threading; threading.Event().wait()",
    "spins": "while True: pass",
    "hangsinidentity": "def balsam_db_type():\n    import time\n    while True: time.sleep(1)",
}


@pytest.mark.parametrize("command", ["list", "check"])
def test_one_that_never_loads_delays_the_listing_and_no_more(site, balsam, command):
    some = HANGS if command == "list" else ["hangs"]
    for name in some:
        site.add(name, HANGS[name])
    site.add("zzz")
    done = balsam("plugins", command, "-o", "json")
    assert done.code == int(command == "check")
    rows = {row["name"]: row for row in done.json}
    for name in some:
        assert "still loading after" in rows[name]["detail"]
        assert f"acme-{name}" in rows[name]["remedy"]
    assert rows["sqlite"]["status"] == rows["zzz"]["status"] == "ok"
    assert balsam("--help").code == 0


def test_one_that_never_loads_is_an_error_of_who_uses_it(site, balsam, tmp_path):
    site.add("hangs", HANGS["hangs"])
    assert "acme-hangs 1.0, for the db type hangs, can't be used: still loading after" in told(
        balsam("init", tmp_path / "db", "--db-type", "hangs")
    )
