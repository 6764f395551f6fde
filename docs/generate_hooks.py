"""Write ``docs/reference/hooks.md`` from the hook specifications: ``make docs``. With ``--check``, only compare."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from balsam_core import hookspecs, plugin_types
from balsam_core.plugin import DBType, ServerPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = Path(__file__).parent / "reference" / "hooks.md"
FIRST_LINE = "<!-- Written by docs/generate_hooks.py from the program: change it there, then run `make docs`. -->"
SECTIONS = {"Args:": "Arguments", "Returns:": "Returns", "Raises:": "Raises", "Attributes:": "Fields"}
VALUES = {"DBType": DBType, "ServerPlan": ServerPlan}

INTRODUCTION = """
# Hooks of a backend

A backend is a module whose functions are marked with `balsam_core.plugin.hookimpl` and have the names and arguments
below. A distribution announces it by an entry point whose name is the db type:

```toml
[project.entry-points."balsam.backends"]
toy = "acme_balsam_toy.backend"
```

The rules for all hooks:

* A hook is called only on the plugin that owns the db type of the DB in hand, always by keywords. An implementation may
  leave out arguments that it doesn't need. It must not have others, and no hook may be invented: such a plugin is
  refused.
* All of Balsam that a plugin imports is `balsam_core.plugin`. Its errors (`InvalidInput`, `Unavailable`, ...) reach the
  user as they are, in one line; anything else that is raised, and a result of another type than the one below, is
  reported as a fault of the plugin, with its distribution, its version and the remedy.
* The import of the module and `balsam_db_type` change nothing in the process and load no driver: a listing puts back
  what they have changed (environment, `sys.path`, the root logger, ...), sends what they print to stderr, and gives up
  after 10 seconds.
* The contract grows by new optional hooks, new arguments and new fields with a default; `PLUGIN_API` changes when old
  plugins would misbehave. This page describes plugin API {api}.
"""


def page() -> str:
    """Return the page."""
    parts = [FIRST_LINE, INTRODUCTION.strip().replace("{api}", str(plugin_types.PLUGIN_API))]
    for title, wanted in (("Required hooks", False), ("Optional hooks", True)):
        parts.append(f"## {title}")
        for name, hook in hooks():
            if (name in hookspecs.OPTIONAL) is wanted:
                parts += [f"### `{name}`", f"```python\n{signature(name, hook)}\n```", text(hook)]
    parts.append("## Values")
    for name, kind in VALUES.items():
        parts += [f"### `{name}`", text(kind)]
    return "\n\n".join(parts) + "\n"


def hooks() -> list[tuple[str, Callable[..., object]]]:
    """Return the hooks by name, in the order of their definition."""
    found = [(name, getattr(hookspecs, name)) for name in hookspecs.__all__ if name.startswith("balsam_")]
    return sorted(found, key=lambda item: item[1].__code__.co_firstlineno)


def signature(name: str, hook: Callable[..., object]) -> str:
    """Return a hook's name, arguments and result as Python."""
    found = inspect.signature(hook)
    arguments = ", ".join(f"{one.name}: {one.annotation}" for one in found.parameters.values())
    return f"{name}({arguments}) -> {found.return_annotation}"


def text(thing: object) -> str:
    """Return a docstring of Google's style as Markdown."""
    return "\n\n".join(_blocks(inspect.getdoc(thing) or ""))


def _blocks(docstring: str) -> Iterator[str]:
    for block in re.split(r"\n\n(?=\S)", docstring):
        head, _, rest = block.partition("\n")
        if head == "Example::":
            yield f"```python\n{inspect.cleandoc(rest)}\n```"
        elif head == "Returns:":
            yield f"Returns: {_marked(' '.join(rest.split()))}"
        elif head in SECTIONS:
            yield f"{SECTIONS[head]}:\n\n" + "\n".join(map(_item, re.split(r"\n(?=    \S)", f"\n{rest}")[1:]))
        else:
            yield _marked(block)


def _item(entry: str) -> str:
    name, _, meaning = " ".join(entry.split()).partition(": ")
    return f"* `{name}`: {_marked(meaning)}"


def _marked(words: str) -> str:
    words = re.sub(r":\w+:`~?([^`]*)`", lambda match: f"`{match[1].rpartition('balsam_core.')[2]}`", words)
    return words.replace("``", "`")


def main() -> int:
    """Write the page, or compare it."""
    content = page()
    if "--check" in sys.argv[1:]:
        current = PAGE.exists() and PAGE.read_text() == content
        print(f"{PAGE} is {'current' if current else 'out of date: run make docs'}")
        return int(not current)
    PAGE.write_text(content)
    print(f"{PAGE} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
