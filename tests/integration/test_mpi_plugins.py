"""MPI kinds of plugins: found, listed, chosen and detected as the built-in ones; a broken one harms nobody."""

from __future__ import annotations

import os

import pytest
from balsam_program import child

from balsam_core import Job, open_db
from balsam_core.backends.kinds import BUILT_IN_MPI
from balsam_core.launcher.mpi import KINDS

BACKEND = 12  # exit code
SETTINGS = 13

CARD = """
from balsam_core.plugin import MPIKind, hookimpl

@hookimpl
def balsam_mpi_kind():
    return MPIKind(
        name="ibrun",
        title="Acme ibrun",
        plugin_api=1,
        template=("acme_ibrun", "-n", "{ranks}", "-t", "{threads_per_rank}"),
        environment={"IBRUN_QUIET": "1"},
        detected_by="ACME_SITE",
    )
"""

IBRUN = """#!/bin/sh
echo "$IBRUN_QUIET $2 $4" >ibrun.said
count=$2
shift 4
while [ $count -gt 0 ]; do count=$((count - 1)); RANK=$count "$@" || exit; done
"""

BROKEN = {
    "raises": ("1 / 0", "ZeroDivisionError"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "leaves": ("import os; os._exit(0)", "loading it ended the process with exit code 0"),
    "segfaults": ("import ctypes; ctypes.string_at(0)", "loading it ended the process by SIGSEGV"),
    "needs": ("import no_such_library", "No module named 'no_such_library'"),
    "hookless": ("", "balsam_mpi_kind"),
    "nothing": ("def balsam_mpi_kind(): return None", "returned NoneType, not MPIKind"),
    "unmarked": (CARD.replace("@hookimpl", ""), "it lacks the hook balsam_mpi_kind"),
    "unknownhook": (CARD + "\n@hookimpl\ndef balsam_init_db(db): ...\n", "balsam_init_db"),
    "othername": (CARD, "it calls itself ibrun"),
    "toonew": (CARD.replace("plugin_api=1", "plugin_api=99"), "pip install -U balsam-core"),
    "steers": (CARD.replace("Acme ibrun", r"\x1b[31m"), "the title must be printable"),
    "rankless": (CARD.replace("{ranks}", "4"), "says nowhere how many ranks"),
    "unknownword": (CARD.replace("{ranks}", "{ranks.__class__}"), "{ranks.__class__} is not known"),
    "wide": (CARD.replace("{ranks}", "{ranks:>999999999}"), "{ranks:>999999999} is not known"),
    "wordless": (CARD.replace('"-n"', "7"), "printable texts"),
    "textual": (CARD.replace("template=(", 'template="x" or ('), "template must be of type tuple"),
    "nul": (CARD.replace("IBRUN_QUIET", r"A\0B"), "printable texts"),
    "badvariable": (CARD.replace("IBRUN_QUIET", "A=B"), "can't be the name of an environment variable"),
    "giant": (CARD.replace('"IBRUN_QUIET": "1"', "'A': 'x' * 10**7"), "larger than"),
}


@pytest.fixture
def balsam(site, path, tmp_path):
    """The program, with the plugins and the site's own MPI program."""
    program = tmp_path / "bin" / "acme_ibrun"
    program.parent.mkdir()
    program.write_text(IBRUN)
    program.chmod(0o755)
    standard = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def run(*words, env=None, db=path):
        return child(*words, db=db, env={**site.environment, **standard, **(env or {})})

    return run


@pytest.fixture
def job(path):
    """A job of two ranks, each of which says its number."""
    with open_db(path) as db:
        db.jobs.add(Job(command="sh -c 'echo rank $RANK'", name="a", ranks_per_node=2, threads_per_rank=3))
    return lambda name="a.out": (path / "data" / "default" / "a_1" / name).read_text()


LAUNCHER = ("launcher", "--consume-all", "--max-ranks-per-node", "8")


def ran(done, job):
    assert done.code == 0, done
    assert "1 finished" in done.out, done
    return job() == "rank 1\nrank 0\n" and job("ibrun.said") == "1 2 3\n"


def test_it_is_listed_and_checked(site, balsam):
    site.add("ibrun", CARD, group="balsam.mpi", version="2.3")
    (row,) = [row for row in balsam("plugins", "list", "-o", "json").json if row["kind"] == "mpi"]
    assert (row["name"], row["package"], row["version"], row["status"]) == ("ibrun", "acme-ibrun", "2.3", "ok")
    assert (row["server"], row["api"], row["default"]) == ("", 1, False)
    assert "\nibrun     mpi      acme-ibrun 2.3 " in balsam("plugins", "list").out
    assert [row["name"] for row in balsam("plugins", "check", "ibrun", "-o", "json").json] == ["ibrun"]
    assert "ibrun" in balsam("plugins", "check", "-o", "ids").out.split()
    assert balsam("plugins", "check", "nonesuch").code == BACKEND


def test_it_starts_the_ranks_where_it_is_named(site, balsam, job):
    site.add("ibrun", CARD, group="balsam.mpi")
    assert ran(balsam(*LAUNCHER, "--mpi", "ibrun"), job)


def test_it_starts_the_ranks_where_the_settings_name_it(site, balsam, job, tmp_path):
    site.add("ibrun", CARD, group="balsam.mpi")
    settings = tmp_path / "config" / "balsam" / "settings.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text('mpi = "ibrun"\n')
    assert ran(balsam(*LAUNCHER, env={"XDG_CONFIG_HOME": str(tmp_path / "config")}), job)


@pytest.mark.parametrize("where", ["here", "elsewhere", "without its program"])
def test_it_is_detected_where_it_says_so(site, balsam, job, where, tmp_path):
    site.add("ibrun", CARD, group="balsam.mpi")
    (tmp_path / "bin" / "sh").symlink_to("/bin/sh")
    if where == "without its program":
        (tmp_path / "bin" / "acme_ibrun").unlink()
    environment = {} if where == "elsewhere" else {"ACME_SITE": "yes"}
    done = balsam(*LAUNCHER, env={**environment, "PATH": str(tmp_path / "bin")})
    assert "Warning" not in done.err, done
    if where == "here":
        assert ran(done, job)
    else:
        assert "1 job needs 2 ranks per node (id 1); this launcher has no MPI" in done.out


def test_its_code_runs_in_no_process_of_a_launcher(site, balsam, job, tmp_path):
    site.add("ibrun", f"import os\nopen({str(tmp_path / 'loaded')!r}, 'a').write('x')\n{CARD}", group="balsam.mpi")
    assert ran(balsam(*LAUNCHER, "--mpi", "ibrun"), job)
    assert balsam(*LAUNCHER, env={"ACME_SITE": "yes"}).code == 0
    assert balsam("plugins", "list").code == 0
    assert (tmp_path / "loaded").read_text() == "x", "once, to be looked at"


def test_who_does_not_need_it_does_not_look_at_it(site, balsam, tmp_path):
    site.add("ibrun", f"open({str(tmp_path / 'loaded')!r}, 'w')\n{CARD}", group="balsam.mpi")
    for words in (
        ["init", tmp_path / "new"],
        ["run", "--", "true"],
        ["ls"],
        ["status"],
        [*LAUNCHER, "--job-mode", "serial"],
        [*LAUNCHER, "--mpi", "sh -c {ranks}"],
        ["ibrun"],
    ):
        done = balsam(*words, db=None if words[0] == "init" else tmp_path / "new")
        assert done.code == (2 if words == ["ibrun"] else 0), done
    assert not (tmp_path / "loaded").exists()


def test_without_its_program_it_is_refused(site, balsam, tmp_path):
    site.add("ibrun", CARD, group="balsam.mpi")
    (tmp_path / "bin" / "acme_ibrun").unlink()
    done = balsam(*LAUNCHER, "--mpi", "ibrun")
    assert (done.code, done.err) == (SETTINGS, "Error: mpi: there is no program of ibrun in PATH (acme_ibrun)\n")
    assert "openmpi, intelmpi, mpich, srun, aprun, jsrun, ibrun, nor" in balsam(*LAUNCHER, "--mpi", "nonesuch").err


def test_broken_ones_harm_nobody_and_are_told(site, balsam, job):
    site.add("ibrun", CARD, group="balsam.mpi")
    for name, (code, _) in BROKEN.items():
        own = code if name == "othername" else code.replace('"ibrun"', f'"{name}"')
        site.add(name, own, group="balsam.mpi")
    site.add("twice", CARD, group="balsam.mpi", package="acme-twice")
    site.add("twice", CARD, group="balsam.mpi", package="other-twice")
    site.add("openmpi", CARD, group="balsam.mpi")
    expected = BROKEN | {"twice": ("", "the name is taken by acme-twice"), "openmpi": ("", "openmpi is built in")}
    done = balsam(*LAUNCHER, env={"ACME_SITE": "yes"})
    assert ran(done, job)
    warnings = done.err.splitlines()
    for name, (_, words) in expected.items():
        (told,) = [line for line in warnings if f", for the MPI kind {name}, can't be used: " in line]
        assert told.startswith("Warning: ")
        assert words in told
        assert told.isprintable()
    assert "Traceback" not in done.err
    for command, code in (("list", 0), ("check", 1)):
        done = balsam("plugins", command, "-o", "json")
        assert done.code == code, done
        rows = {row["name"]: row for row in done.json}
        assert rows["sqlite"]["status"] == rows["ibrun"]["status"] == "ok"
        for name, (_, words) in expected.items():
            assert rows[name]["status"] in {"broken", "incompatible"}
            assert words in rows[name]["detail"] + rows[name]["remedy"]
            assert len(rows[name]["detail"]) < 1500
    for name in ("raises", "leaves", "rankless", "twice"):
        done = balsam(*LAUNCHER, "--mpi", name)
        assert (done.code, done.out, done.err.count("\n")) == (BACKEND, "", 1), done
        assert f", for the MPI kind {name}, can't be used: " in done.err
        assert expected[name][1] in done.err
    assert balsam(*LAUNCHER, "--mpi", "openmpi").code in {0, SETTINGS}, "the built-in kind"


def test_built_in_kinds_keep_their_names():
    assert tuple(KINDS) == BUILT_IN_MPI
