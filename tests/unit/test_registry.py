"""Fake plugins without installing: a dist-info directory on sys.path is all that makes a distribution."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from balsam_core import plugin
from balsam_core.backends import probe
from balsam_core.backends.registry import OFFICIAL, Registry, canonical
from balsam_core.dbdir import address
from balsam_core.errors import BackendError, ServerNotRunning
from balsam_core.hookspecs import hookimpl
from balsam_core.plugin_types import DBType, ServerPlan, ServerPolicy

if TYPE_CHECKING:
    from balsam_core.hookspecs.backend import BackendModule

GOOD = """
    from balsam_core.plugin import DBType, ServerNotRunning, ServerPlan, ServerPolicy, hookimpl

    @hookimpl
    def balsam_db_type():
        return DBType(name="toy", title="Toy", server=ServerPolicy.NONE, plugin_api=1)

    @hookimpl
    def balsam_init_db(db, options):
        return {"made": str(db.path)}

    @hookimpl
    def balsam_start_server(db, host, port):
        return ServerPlan(argv=["toyd"], host=host, port=port, protocol="toy", is_ready=lambda seconds: True)

    @hookimpl
    def balsam_open_transport(db):  # an argument that isn't needed may be left out
        raise ServerNotRunning("the toy wants its server")

    @hookimpl
    def balsam_create_engine(db, role):
        return 42
"""


class Site:
    """Makes distributions in a directory."""

    def __init__(self, path):
        self.path = path

    def __call__(self, package, *, version="1.0", entries=None, code=GOOD, where=None, name="toy"):
        """Make one; its module has a name of its own, which is returned."""
        where = where or self.path
        module = package.replace("-", "_") + "_module"
        info = where / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n\nName: body\n")
        entries = f"[balsam.backends]\n{name} = {module}\n" if entries is None else entries
        (info / "entry_points.txt").write_bytes(entries.encode("latin-1"))
        (where / f"{module}.py").write_text(textwrap.dedent(code))
        return module


@pytest.fixture
def site(tmp_path, monkeypatch):
    known = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield Site(tmp_path)
    for module in set(sys.modules) - known:
        if module.endswith("_module"):
            del sys.modules[module]


def row(name):
    return {status.name: status for status in Registry().statuses()}[name]


def failure(name):
    with pytest.raises(BackendError) as caught:
        Registry().load(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_plugin_is_loaded_by_name(site, db):
    site("acme-toy", version="2.3")
    backend = Registry().load("toy")
    assert (backend.identity.title, backend.package, backend.version) == ("Toy", "acme-toy", "2.3")
    assert backend.init_db(db, {}) == {"made": str(db.path)}
    assert isinstance(backend.start_server(db, "h", 1, tls=True), ServerPlan)
    with pytest.raises(ServerNotRunning, match="the toy wants"):
        backend.open_transport(db)


def test_a_plugin_of_the_first_contract_still_gets_the_published_address(site, db):
    old = """
    @hookimpl
    def balsam_create_engine(db, address, role):
        from sqlalchemy import create_engine
        return create_engine("sqlite://", logging_name=f"{address.place} {role}")
"""
    site("acme-toy", code=GOOD + old)
    server = address.Address(state="running", host="h", port=7, protocol="toy", pid=1)
    with address.override(db, server):
        engine = Registry().load("toy").create_engine(db, "owner")
    assert engine.logging_name == "h:7 owner"


FIRST_NAMES = """
    PLUGIN_API Address BackendError BackendModule BalsamError Busy Conflict Corrupt DBDir DBDirError DBType EngineRole
    InvalidInput NativeTransport NotFound OutcomeUnknown SchemaMismatch ServedTransport ServerConnector ServerNotRunning
    ServerPlan ServerPolicy ServerStatus SingleWriter Transport Unavailable atomic_write filesystem_type force_to_disk
    hookimpl is_loopback is_network make_certificate private_file rename_new seconds_left shown write_private
    write_server_plan
"""


def test_the_public_api_keeps_the_names_of_the_first_plugins():
    assert set(FIRST_NAMES.split()) <= set(plugin.__all__)
    assert plugin.PLUGIN_API == 1, "for a new contract this list may change"


def test_listing_tells_all_about_a_good_plugin(site):
    module = site("acme-toy", version="2.3")
    status = row("toy")
    assert (status.package, status.version, status.status, status.server, status.api, status.module) == (
        "acme-toy",
        "2.3",
        "ok",
        "none",
        1,
        module,
    )
    assert not status.default


def test_loading_one_plugin_imports_no_other(site):
    site("acme-toy")
    site("acme-bad", name="bad", code="raise SystemExit('I take all down')")
    registry = Registry()
    registry.load("toy")
    assert "acme_bad_module" not in sys.modules


BROKEN = {
    "raises": ("1 / 0", "broken", "ZeroDivisionError"),
    "exits": ("raise SystemExit(3)", "broken", "SystemExit: 3"),
    "syntax": ("def (", "broken", "SyntaxError"),
    "missing library": ("import no_such_library", "broken", "No module named 'no_such_library'"),
    "no hooks": ("", "broken", "balsam_db_type"),
    "nonsense identity": ("def balsam_db_type(): return 7", "broken", "returned int, not DBType"),
    "raising identity": ("def balsam_db_type(): raise ValueError('a\\nb')", "broken", "ValueError: a b"),
    "other name": (GOOD.replace('"toy"', '"other"'), "broken", "calls itself other"),
    "bad name": (GOOD.replace('"toy"', '"To y"'), "broken", "'To y'"),
    "missing hook": (GOOD.replace("def balsam_init_db", "def init_db"), "broken", "balsam_init_db"),
    "unmarked hook": (GOOD + "\n    balsam_init_db = lambda db, options: {}\n", "broken", "balsam_init_db"),
    "unknown argument": (GOOD.replace("(db, options)", "(db, optoins)"), "broken", "optoins"),
    "misspelt hook": (GOOD + "\n    @hookimpl\n    def balsam_inti_db(): ...\n", "broken", "balsam_inti_db"),
    "newer": (GOOD.replace("plugin_api=1", "plugin_api=2"), "incompatible", "needs plugin API 2, this core has 1"),
    "older": (GOOD.replace("plugin_api=1", "plugin_api=0"), "incompatible", "needs plugin API 0, this core has 1"),
    "api as text": (GOOD.replace("plugin_api=1", "plugin_api='1'"), "broken", "plugin_api must be of type int"),
    "unknown field": (GOOD.replace("plugin_api=1", "plugin_api=1, colour=3"), "broken", "colour"),
    "no driver": (
        GOOD.replace("plugin_api=1", "plugin_api=1, driver='no_such_driver', driver_remedy='pip install it'"),
        "driver missing",
        "no_such_driver",
    ),
}


@pytest.mark.parametrize(("code", "status", "words"), BROKEN.values(), ids=BROKEN)
def test_fault_is_kept_and_raised_on_use(site, code, status, words):
    site("acme-toy", version="2.3", code=code)
    found = row("toy")
    assert (found.status, found.package) == (status, "acme-toy")
    assert words in found.detail
    assert "\n" not in found.detail
    assert found.remedy
    message = failure("toy")
    assert "acme-toy 2.3" in message
    assert words in message
    assert found.remedy in message


def test_remedy_of_an_incompatible_plugin_names_what_is_too_old(site):
    site("acme-toy", code=BROKEN["newer"][0])
    site("acme-old", name="old", code=BROKEN["older"][0].replace('"toy"', '"old"'))
    assert "pip install -U balsam-core" in row("toy").remedy
    assert "pip install -U acme-old" in row("old").remedy
    assert row("toy").api == 2


def test_a_good_plugin_works_beside_every_broken_one(site, db):
    site("acme-toy")
    for number, (code, *_rest) in enumerate(BROKEN.values()):
        site(f"acme-broken{number}", name=f"broken{number}", code=code)
    statuses = {status.name: status.status for status in Registry().statuses()}
    assert statuses["toy"] == "ok"
    assert [statuses[f"broken{number}"] for number in range(len(BROKEN))].count("ok") == 0
    registry = Registry()
    for number in range(len(BROKEN)):
        with pytest.raises(BackendError):
            registry.load(f"broken{number}")
    assert registry.load("toy").init_db(db, {}) == {"made": str(db.path)}


def test_plugin_that_never_loads_does_not_stop_the_listing(site, monkeypatch):
    monkeypatch.setattr(probe, "LOAD_TIMEOUT", 0.2)
    site("acme-toy", code="import time; time.sleep(30)")
    assert {status.name: status.detail for status in Registry().statuses()}["toy"] == "still loading after 0.2 s"


def test_a_plugin_without_a_server_needs_no_hook_for_one(site):
    start = GOOD.index("    @hookimpl\n    def balsam_start_server")
    without = GOOD[:start] + GOOD[GOOD.index("    @hookimpl\n    def balsam_open_transport") :]
    site("acme-toy", code=without)
    assert row("toy").status == "ok"
    site("acme-served", name="served", code=without.replace('"toy"', '"served"').replace("NONE", "OPTIONAL"))
    assert "it lacks the hook balsam_start_server" in failure("served")


def test_two_distributions_with_one_name_are_both_named(site):
    site("acme-toy", version="1.0")
    site("other-toy", version="3.0")
    message = failure("toy")
    assert "acme-toy 1.0" in message
    assert "other-toy 3.0" in message
    assert row("toy").status == "broken"
    assert row("toy").package in {"acme-toy, other-toy", "other-toy, acme-toy"}


def test_the_same_distribution_twice_counts_once(site, monkeypatch):
    site("acme-toy", version="1.0")
    site("acme-toy", version="1.1", where=site.path / "stale")
    monkeypatch.syspath_prepend(site.path / "stale")
    assert Registry().load("toy").version == "1.1"


@pytest.mark.parametrize("name", ["Toy", "to-y", "7toy", "to y", "mariadb"])
def test_bad_names_are_quarantined(site, name):
    site("acme-toy", entries=f"[balsam.backends]\n{name} = acme_toy_module\n")
    bad = [status for status in Registry().statuses() if status.package == "acme-toy"]
    assert [status.status for status in bad] == ["broken"]


@pytest.mark.parametrize(
    "entries",
    [
        "[balsam.backends]\ntoy\n",
        "[balsam.backends]\ntoy = \n",
        "[balsam.backends]\ntoy = a b c ???\n",
        "[balsam.backends]\ntoy = os:getcwd\n",
        "[balsam.backends\ntoy = x\n",
        "\xff\xfe balsam.backends",
        "",
    ],
)
def test_garbage_metadata_harms_nobody(site, entries):
    site("acme-toy", entries=entries)
    site("acme-fine", name="fine", code=GOOD.replace('"toy"', '"fine"'))
    assert row("fine").status == "ok"
    assert "ok" not in {status.status for status in Registry().statuses() if status.package == "acme-toy"}


def test_distribution_without_metadata_is_named_by_its_folder(site):
    module = site("acme-toy")
    (site.path / "acme_toy-1.0.dist-info" / "METADATA").unlink()
    assert row("toy").package == "acme_toy-1.0.dist-info"
    assert row("toy").module == module


def test_unknown_type_lists_the_installed_ones_and_the_pip_line(site):
    site("acme-toy")
    message = failure("oracle")
    assert "no db type 'oracle'" in message
    assert "toy" in message


def test_official_type_that_is_missing_has_its_pip_line():
    registry = Registry([])
    for name in ("postgres", "postgresql", "mysql", "mariadb", "sqlite", "sqlite3"):
        with pytest.raises(BackendError, match=f"pip install {OFFICIAL[canonical(name)]}$"):
            registry.load(name)
    assert {status.name: status.remedy for status in registry.statuses()} == {
        "sqlite": "pip install balsam-sqlite",
        "postgres": "pip install balsam-postgres",
        "mysql": "pip install balsam-mysql",
    }
    with pytest.raises(BackendError, match=r"installed: none.*pip install balsam-sqlite balsam-postgres balsam-mysql"):
        registry.load("oracle")


@pytest.mark.parametrize(
    ("alias", "name"),
    [("sqlite3", "sqlite"), ("postgresql", "postgres"), ("mariadb", "mysql"), (" SQLite ", "sqlite"), ("toy", "toy")],
)
def test_aliases(alias, name):
    assert canonical(alias) == name


NONSENSE = {
    "settings of numbers": ("init_db", '{"made": str(db.path)}', '{"a": 1}', "not all text"),
    "no settings": ("init_db", '{"made": str(db.path)}', "None", "returned NoneType, not Mapping"),
    "no plan": ("start_server", "ServerPlan(argv", "print or dict(argv", "not ServerPlan"),
    "no engine": ("create_engine", "", "", "returned int, not Engine"),
    "no transport": ("open_transport", 'raise ServerNotRunning("the toy wants its server")', "return 3", "Transport"),
    "an exception": ("init_db", '{"made": str(db.path)}', "1 / 0", "failed in balsam_init_db: ZeroDivisionError"),
}


@pytest.mark.parametrize(("hook", "old", "new", "words"), NONSENSE.values(), ids=NONSENSE)
def test_nonsense_results_are_a_fault_of_the_plugin(site, db, hook, old, new, words):
    site("acme-toy", version="2.3", code=GOOD.replace(old, new) if old else GOOD)
    backend = Registry().load("toy")
    arguments = {
        "init_db": [db, {}],
        "start_server": [db, "h", 1],
        "open_transport": [db],
        "create_engine": [db, "owner"],
    }
    with pytest.raises(BackendError) as caught:
        getattr(backend, hook)(*arguments[hook])
    assert words in str(caught.value)
    assert "acme-toy 2.3" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_hooks_go_to_the_owner_alone_and_wrappers_still_run(site, db):
    site("acme-toy")
    site("acme-greedy", name="greedy", code=GOOD.replace('"toy"', '"greedy"').replace('"made"', '"hijacked"'))
    seen = []

    class SitePolicy:
        @staticmethod
        @hookimpl(wrapper=True)
        def balsam_init_db(db, options):
            result = yield
            seen.append(result)
            return result | {"policy": "checked"}

    registry = Registry()
    toy, greedy = registry.load("toy"), registry.load("greedy")
    registry.manager.register(SitePolicy(), "policy")
    assert toy.init_db(db, {}) == {"made": str(db.path), "policy": "checked"}
    assert greedy.init_db(db, {}) == {"hijacked": str(db.path), "policy": "checked"}
    assert seen == [{"made": str(db.path)}, {"hijacked": str(db.path)}]


def test_check_loads_drivers_and_keeps_tracebacks(site):
    (site.path / "acme_driver_module.py").write_text("raise OSError('libtoy.so.3: cannot open shared object file')")
    site("acme-toy", code=GOOD.replace("plugin_api=1", "plugin_api=1, driver='acme_driver_module'"))
    assert row("toy").status == "ok"
    [checked] = Registry().check("toy")
    assert checked.status == "broken"
    assert "libtoy.so.3" in checked.detail
    assert "Traceback" in checked.traceback
    assert "toy" in {status.name for status in Registry().check()}
    with pytest.raises(BackendError, match="no db type"):
        Registry().check("nonesuch")


def test_sqlite_is_installed_and_the_default():
    [status] = [status for status in Registry().statuses() if status.name == "sqlite"]
    assert (status.package, status.status, status.server, status.default) == ("balsam-sqlite", "ok", "optional", True)


def test_official_backend_has_the_types_of_the_contract():
    from balsam_sqlite import backend

    module: BackendModule = backend  # mypy compares each hook's signature
    assert module.balsam_db_type().name == "sqlite"


def test_listing_loads_no_driver():
    code = """
        import sys
        from balsam_core.backends import listing
        assert listing.list_plugins()
        assert not {"sqlalchemy", "sqlite3", "_sqlite3", "zmq", "psycopg", "MySQLdb", "rich"} & sys.modules.keys()
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=60)


@pytest.mark.parametrize("name", ["", "To", "a-b", "a b", "1a", "ä", "a\n"])
def test_bad_db_type_names_are_refused_at_construction(name):
    with pytest.raises(ValueError, match="lower-case"):
        DBType(name=name, title="T", server=ServerPolicy.NONE, plugin_api=1)


def test_driver_must_be_a_top_level_module():
    with pytest.raises(ValueError, match="top-level"):
        DBType(name="a", title="T", server=ServerPolicy.NONE, plugin_api=1, driver="a.b")


def test_check_imports_every_module_of_the_package(site, tmp_path, monkeypatch):
    home = tmp_path / "toyish_module"
    home.mkdir()
    (home / "__init__.py").write_text("")
    (home / "entry.py").write_text(textwrap.dedent(GOOD))
    (home / "__main__.py").write_text("raise SystemExit('it ran')\n")
    (home / "late.py").write_text("from balsam_core.plugin import no_such_name\n")
    site("toyish", entries="[balsam.backends]\ntoy = toyish_module.entry\n")
    (tmp_path / "toyish_module.py").unlink()
    assert row("toy").status == "ok"
    (found,) = Registry().check("toy")
    assert (found.status, found.detail.startswith("its module toyish_module.late: ImportError")) == ("broken", True)
    assert "no_such_name" in found.traceback
    assert "pip install" in found.remedy
    (home / "late.py").write_text("")
    for name in [one for one in sys.modules if one.startswith("toyish_module")]:
        monkeypatch.delitem(sys.modules, name)
    (found,) = Registry().check("toy")
    assert found.status == "ok", found


def test_what_a_plan_carries_fails_in_one_line(site, db):
    site("toy-plan", code=GOOD.replace("lambda seconds: True", "lambda seconds: 1 // 0"))
    plan = Registry().load("toy").start_server(db, "127.0.0.1", 5)
    with pytest.raises(BackendError, match=r"^toy-plan 1\.0 failed in is_ready: ZeroDivisionError: .* authors$"):
        plan.is_ready(1.0)
