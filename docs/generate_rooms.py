"""Write the picture of the packages and their table into the pages: ``make docs``. With ``--check``, only compare.

The picture comes from the imports in the sources, the table from the packages' docstrings. Sizes are rounded, and may
differ from the sources by a fifth before a page counts as out of date: else every change would touch the pages.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from import_graph import CORE, FLOORS, TO_COME, imported, module_name, python_files, unit_of  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURE_PAGE = ROOT / "docs" / "explanation" / "architecture.md"
TABLE_PAGE = ROOT / "CONTRIBUTING.md"
BEGIN = "<!-- Written by docs/generate_rooms.py: run `make docs`. -->"
END = "<!-- End of the generated part. -->"
SIZE = re.compile(r"(\d[\d,]*) (modules|lines)")
TOLERANCE = 0.2  # of a size, before a page counts as out of date
SMALL = {"modules": 2, "lines": 100}  # differences that never count
PLUGINS = [path.name for path in sorted(ROOT.glob("plugins/*/"))]
PRESENT = [sorted(names - TO_COME) for names in FLOORS]
# Above all floors: what users' programs import, and the conformance suite.
TOP = ("__init__", "testing")
HIDDEN = {"version"}  # it is imported everywhere and says nothing about the structure


class Size(NamedTuple):
    """How much code there is."""

    modules: int
    lines: int

    def __str__(self) -> str:
        rounded = f"{round(self.lines, -2) or 100:,} lines"
        return rounded if self.modules == 1 else f"{self.modules} modules, {rounded}"


def size_of(path: Path) -> Size:
    """Count the modules and lines of a package, or of a module."""
    files = python_files(path) if path.is_dir() else [path]
    return Size(len(files), sum(len(file.read_text().splitlines()) for file in files))


def path_of(unit: str) -> Path:
    """Return the folder or file of a unit of the core."""
    return CORE / unit if (CORE / unit).is_dir() else CORE / f"{unit}.py"


# ---------------------------------------------------------------------------------------------------------- the picture


def imports_of_units() -> dict[str, set[str]]:
    """Return for each unit of the core the other units that it imports."""
    units = {unit for names in PRESENT for unit in names} | set(TOP)
    graph: dict[str, set[str]] = {unit: set() for unit in units}
    for path in python_files(CORE):
        module = module_name(path, ROOT)
        if (importer := unit_of(module)) in units:
            for _line, name in imported(path.read_text(), module, is_package=path.name == "__init__.py"):
                if name.startswith("balsam_core.") and (unit := unit_of(name)) in units - {importer}:
                    graph[importer].add(unit)
    return graph


def reduced(graph: dict[str, set[str]]) -> Iterator[tuple[str, str]]:
    """Give the edges that no longer path stands for, from the top floor down."""
    reachable: dict[str, set[str]] = {}

    def below(unit: str) -> set[str]:
        if unit not in reachable:
            reachable[unit] = set().union(*({there} | below(there) for there in graph[unit]))
        return reachable[unit]

    for unit in [*TOP, *(name for names in PRESENT for name in names)]:
        for there in sorted(graph[unit]):
            if not any(there in below(between) for between in graph[unit] - {there}):
                yield unit, there


def picture() -> str:
    """Return the picture as Mermaid text, in its fence."""
    lines = ["flowchart TD", f'    plugins["<b>plugins/</b><br>{", ".join(PLUGINS)}<br>{size_of(ROOT / "plugins")}"]']
    shown = [*TOP, *(unit for names in PRESENT for unit in names if unit not in HIDDEN)]
    for unit in shown:
        path = path_of(unit)
        left, right, name = ("[", "]", f"{unit}/") if path.is_dir() else ("([", "])", f"{unit}.py")
        lines.append(f'    {unit.strip("_")}{left}"<b>{name}</b><br>{size_of(path)}"{right}')
    lines += [
        f"    {here.strip('_')} --> {there}" for here, there in reduced(imports_of_units()) if there not in HIDDEN
    ]
    lines += ["    plugins --> plugin", "    backends -. loads .-> plugins"]
    return "\n".join(["```mermaid", *lines, "```"])


# ------------------------------------------------------------------------------------------------------------ the table


def purpose(path: Path) -> str:
    """Return the first sentence of a module's or package's docstring, as Markdown."""
    source = path / "__init__.py" if path.is_dir() else path
    docstring = ast.get_docstring(ast.parse(source.read_text())) or ""
    text = " ".join(docstring.partition("\n\n")[0].split())
    sentence = re.split(r"(?<=\.) (?=[A-Z])", text)[0]
    sentence = re.sub(r":\w+:`~?([^`]*)`", r"``\1``", sentence)
    return sentence.replace("``", "`").replace("|", "\\|")


def table() -> str:
    """Return the table of the packages, from the top floor down."""
    rows = ["| floor | package | what it is |", "|---|---|---|"]
    for number, names in zip(range(len(PRESENT), 0, -1), PRESENT, strict=True):
        for unit in names:
            path = path_of(unit)
            rows.append(f"| {number} | `{path.relative_to(ROOT)}{'/' * path.is_dir()}` | {purpose(path)} |")
            inner = [folder for folder in sorted(path.glob("*/")) if (folder / "__init__.py").exists()]
            rows += [f"| | `{folder.relative_to(ROOT)}/` | {purpose(folder)} |" for folder in inner]
    rows.append(f"| above all | `balsam_core/testing/` | {purpose(CORE / 'testing')} |")
    for name in PLUGINS:
        path = ROOT / "plugins" / name / f"balsam_{name}"
        rows.append(f"| | `{path.relative_to(ROOT)}/` | {purpose(path)} |")
    return "\n".join(rows)


# ------------------------------------------------------------------------------------------------------------ the pages


def pages() -> dict[Path, str]:
    """Return each page's text as it should be."""
    return {page: _with_part(page.read_text(), part()) for page, part in ((PICTURE_PAGE, picture), (TABLE_PAGE, table))}


def _with_part(page: str, part: str) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page has no lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{part}\n\n{END}{after}"


def is_current(page: str, wanted: str) -> bool:
    """Say whether a page is as it should be, but for sizes that differ a little."""
    if SIZE.sub(r"N \2", page) != SIZE.sub(r"N \2", wanted):
        return False
    for (size, unit), (right, _) in zip(SIZE.findall(page), SIZE.findall(wanted), strict=True):
        size_now, size_then = int(right.replace(",", "")), int(size.replace(",", ""))
        if abs(size_now - size_then) > max(SMALL[unit], TOLERANCE * size_now):
            return False
    return True


def main() -> int:
    """Write the pages that are out of date, or name them."""
    check = "--check" in sys.argv[1:]
    stale = {page: text for page, text in pages().items() if not is_current(page.read_text(), text)}
    for page, text in stale.items():
        if check:
            print(f"{page} is out of date: run make docs")
        else:
            page.write_text(text)
            print(f"{page} is written")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
