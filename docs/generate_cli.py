"""Write ``docs/reference/cli.md`` from the commands themselves: ``make docs``. With ``--check``, only compare.

The text comes from the options' names and helps, not from click's own layout, which differs between its versions.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from balsam_core import errors
from balsam_core.cli.command import FORMATS, Command
from balsam_core.cli.root import SECTIONS, root
from balsam_core.cli.selectors import HELP

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = Path(__file__).parent / "reference" / "cli.md"
FIRST_LINE = "<!-- Written by docs/generate_cli.py from the program: change it there, then run `make docs`. -->"

FORMS = {
    "table": "for people: the newest 100 jobs, local time; wide cells are cut on a terminal only",
    "json": "one object, or an array of objects",
    "jsonl": "one object a line",
    "csv": "a line of names, then a line for each result",
    "ids": "ids (of apps and workflows: names), one a line, ready for `-` of another command",
}
INTRODUCTION = """
# Command line

Every command takes `--db PATH` (which DB), `-o FORMAT` (how to print) and `-v` (tracebacks), before or after its name.

## Which DB

`--db PATH`, else the variable `BALSAM_DB_PATH`, else `default_db_path` in `settings.toml`, else `default_balsamdb` in
the user's data directory, which is created on first use. `balsam config show` tells which one it is, and why.

## Output

Results go to stdout; remarks and errors go to stderr. `BALSAM_OUTPUT` sets another format than `table`.
"""
NAMES = """
JSON and CSV name a job's fields as Python does (see `Job`); times are ISO 8601 in UTC. Only tables are limited by
themselves; the other formats give every job unless `--limit` is given. In `json` and `jsonl` an error is one object on
stderr: `{"error": {"code": "not-found", "message": "...", "exit_code": 3}}`.

## Selectors
"""
CODES = {
    0: "it worked",
    1: "a fault that has no code of its own",
    2: "wrong command line",
    130: "interrupted by Ctrl-C",
    141: "the reader of the output went away (`balsam ls | head -1`)",
}


def page() -> str:
    """Return the page."""
    parts = [FIRST_LINE, INTRODUCTION.strip(), table(("Format", "What it is"), ((f"`{f}`", FORMS[f]) for f in FORMATS))]
    parts += [
        NAMES.strip(),
        marked(HELP),
        "## Exit codes",
        table(("Code", "Meaning"), exit_codes()),
    ]
    for title, section in SECTIONS.items():
        parts.append(f"## {title}")
        for name in section:
            found = root.get_command(click.Context(root), name)
            if isinstance(found, click.Group):
                parts += [command(f"balsam {name} {inner}", found.commands[inner]) for inner in found.commands]
            elif found is not None:
                parts.append(command(f"balsam {name}", found))
    return "\n\n".join(parts) + "\n"


def exit_codes() -> Iterator[tuple[str, str]]:
    """Give the exit codes and what they mean."""
    meanings = {code: [text] for code, text in CODES.items()}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.BalsamError) and kind.exit_code > 1:
            text = f"`{kind.code}`: {(kind.__doc__ or '').strip().rstrip('.').replace('``', '`')}"
            meanings.setdefault(kind.exit_code, []).append(text)
    for code in sorted(meanings):
        yield str(code), "; ".join(meanings[code])


def command(path: str, found: click.Command) -> str:
    """Return the section of one command."""
    own = [param for param in found.params if param.expose_value and not getattr(param, "hidden", False)]
    arguments = [argument(param) for param in own if isinstance(param, click.Argument)]
    options = [param for param in own if isinstance(param, click.Option)]
    usage = " ".join([path, *(["[OPTIONS]"] if options else []), *arguments])
    parts = [f"### `{path}`", f"```\n{usage}\n```", inspect.cleandoc(found.help or "")]
    if found.epilog:
        parts.append(marked(found.epilog))
    if options:
        parts.append(table(("Option", "Meaning"), map(option, options)))
    if isinstance(found, Command) and found.examples:
        parts.append("```sh\n" + "\n".join(found.examples) + "\n```")
    return "\n\n".join(parts)


def argument(param: click.Argument) -> str:
    """Return an argument as the usage line shows it."""
    if param.metavar:
        return param.metavar
    name = "|".join(map(str, param.type.choices)) if isinstance(param.type, click.Choice) else f"{param.name}".upper()
    name += "..." if param.nargs == -1 else ""
    return name if param.required else f"[{name}]"


def marked(text: str) -> str:
    """Return the sentence on selectors with its examples as code."""
    for word in ("12", "12-20", "1,3", "last", "all", "wf:NAME", "-"):
        text = re.sub(rf"(?<=[ (]){re.escape(word)}(?=[ ),])", f"`{word}`", text)
    return text


def option(param: click.Option) -> tuple[str, str]:
    """Return an option's names and its meaning."""
    value = "" if param.is_flag else f" {param.metavar or param.type.name.upper()}"
    names = ", ".join(f"`{name}{value}`" for name in param.opts)
    other = "".join(f" / `{name}`" for name in param.secondary_opts)
    least = getattr(param.type, "min", None)
    bound = "" if least is None or least < 1 else f" At least {least:g}."
    required = " Required." if param.required else ""
    text, _, default = f"{param.help}".partition("  [")
    return names + other, f"{text}{bound}{required}" + (f" [{default}" if default else "")


def table(head: tuple[str, str], rows: Iterator[tuple[str, str]] | map[tuple[str, str]]) -> str:
    """Return a table in Markdown."""
    lines = [head, ("---", "---"), *rows]
    return "\n".join(f"| {first} | {second.replace('|', chr(92) + '|')} |" for first, second in lines)


def main() -> int:
    """Write the page, or compare it."""
    text = page()
    if "--check" in sys.argv[1:]:
        current = PAGE.exists() and PAGE.read_text() == text
        print(f"{PAGE} is {'current' if current else 'out of date: run make docs'}")
        return int(not current)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text)
    print(f"{PAGE} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
