"""The documentation says what the code says, and names only what there is."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from balsam_core import errors

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GLOSSARY = DOCS / "explanation" / "glossary.md"
PAGES = sorted(
    page
    for folder in (ROOT, ROOT / "changelog.d", *ROOT.glob("plugins/*/"), *ROOT.glob("examples/*/"), ROOT / "benchmarks")
    for page in folder.glob("*.md")
) + sorted(DOCS.rglob("*.md"))
FOLDERS = (
    *("balsam_core", "plugins", "tests", "docs", "examples", "benchmarks"),
    *(re.escape(name) for name in ("changelog.d", ".ci", ".github")),
)
PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w.*/-]*")
PLACEHOLDER = re.compile(r"[A-Z]{4,}|\d*N_")  # NAME.py, 000N_WORDS.py


def name_of(page):
    return str(page.relative_to(ROOT))


def prose(page):
    """Return a page's text without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """Return the anchors that GitHub makes of the headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def exists(path):
    """Say whether a path of the repository exists; of one with a placeholder, whether its folder does."""
    while PLACEHOLDER.search(Path(path).name):
        path = str(Path(path).parent)
    return any(ROOT.glob(path.rstrip("/")))


def test_every_error_and_its_exit_code_is_documented():
    text = (DOCS / "reference" / "exit-codes.md").read_text()
    for kind in [errors.BalsamError, *errors._BY_CODE.values()]:
        assert f"| {kind.exit_code} | `{kind.code}` | {(kind.__doc__ or '').splitlines()[0]} |" in text


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"link to {target}"
        assert not anchor or anchor in anchors(there), f"link to {target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_files_exist(page):
    missing = [path for path in re.findall(r"`([^`\s]+)`", prose(page)) if PATH.fullmatch(path) and not exists(path)]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_named_modules_and_their_members_exist(page):
    for name in set(re.findall(r"`(balsam_core(?:\.\w+)+)`", prose(page))):
        module, found = name, None
        while found is None:
            try:
                found = import_module(module)
            except ImportError:
                module = module.rpartition(".")[0]
        for member in name.removeprefix(module).split(".")[1:]:
            found = getattr(found, member)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_are_in_the_files_that_are_said_to_hold_them(page):
    for name, path in re.findall(r"`(\w+)` (?:in|of) `([\w/]+\.py)`", prose(page)):
        assert exists(path), f"{name} is said to be in {path}"
        assert re.search(rf"\b{name}\b", (ROOT / path).read_text()), f"{name} is not in {path}"


def test_the_glossary_is_sorted_and_names_each_term_once():
    rows = re.findall(r"^\| ([^|]+) \|", GLOSSARY.read_text(), re.MULTILINE)
    terms = [row.strip("` ").lower() for row in rows if row != "term"]
    assert terms == sorted(set(terms))


def test_every_page_is_in_the_index():
    index = (DOCS / "README.md").read_text()
    for page in DOCS.rglob("*.md"):
        if page.name != "README.md":
            assert f"]({page.relative_to(DOCS)})" in index


def test_the_folders_of_the_tests_are_described():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for folder in (ROOT / "tests").glob("[a-z]*/"):
        assert f"    tests/{folder.name}/ " in text


def test_fragments_of_the_changelog_have_names_that_towncrier_takes():
    towncrier = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["towncrier"]
    kinds = "|".join(kind["directory"] for kind in towncrier["type"])
    for fragment in (ROOT / towncrier["directory"]).iterdir():
        if fragment.name != "README.md":
            assert re.fullmatch(rf"(\+[a-z0-9-]+|\d+)\.({kinds})\.md", fragment.name)
    assert towncrier["start_string"] in (ROOT / towncrier["filename"]).read_text()


@pytest.fixture(scope="module")
def generate_rooms():
    """The script that writes the pictures and tables of the packages."""
    spec = spec_from_file_location("generate_rooms", DOCS / "generate_rooms.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


def test_the_picture_and_the_table_of_the_packages_are_current(generate_rooms):
    pages = generate_rooms.pages().items()
    stale = [page.name for page, text in pages if not generate_rooms.is_current(page.read_text(), text)]
    assert not stale, "run: make docs"


@pytest.mark.parametrize(
    ("page", "current"),
    [
        ("cli: 10 modules, 1,000 lines", True),
        ("cli: 11 modules, 1,200 lines", True),
        ("cli: 10 modules, 1,300 lines", False),
        ("cli: 14 modules, 1,000 lines", False),
        ("cli: 1,000 lines", False),
        ("model: 10 modules, 1,000 lines", False),
    ],
)
def test_only_sizes_may_lag_behind_and_little(generate_rooms, page, current):
    assert generate_rooms.is_current(page, "cli: 10 modules, 1,000 lines") is current
