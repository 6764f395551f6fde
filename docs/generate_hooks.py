"""Write ``docs/reference/hooks.md`` from the hook specifications: ``make docs``. With ``--check``, only compare."""

from __future__ import annotations

import enum
import inspect
import re
import sys
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from balsam_core import plugin, plugin_types
from balsam_core.hookspecs import backend, mpi
from balsam_core.plugin import BalsamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

PAGE = Path(__file__).parent / "reference" / "hooks.md"
FIRST_LINE = "<!-- Written by docs/generate_hooks.py from the program: change it there, then run `make docs`. -->"
SECTIONS = {"Args:": "Arguments", "Returns:": "Returns", "Raises:": "Raises", "Attributes:": "Fields"}
WORDS = {"PLUGIN_API", "EngineRole", "hookimpl", "BackendModule"}  # described by words()

INTRODUCTION = """
# Hooks

A plugin is a module whose functions are marked with `balsam_core.plugin.hookimpl` and have the names and arguments
below. An entry point of its distribution names the module. The group says the kind of the plugin: `balsam.backends` for
a backend, where the entry point's name is the db type, and `balsam.mpi` for an MPI kind, where it is what `--mpi`
takes:

```toml
[project.entry-points."balsam.backends"]
toy = "acme_balsam_toy.backend"
```

The rules for all hooks:

* A hook of a backend is called only on the plugin of the DB's type, always by keywords. An implementation may leave out
  arguments that it doesn't need. A plugin with other arguments, or with a function that is marked as a hook and is none
  of those of its kind, is refused.
* A plugin imports nothing of Balsam but `balsam_core.plugin`. Its errors (`InvalidInput`, `Unavailable`, ...) reach the
  user as they are, in one line. Any other exception, and a result of another type than the one below, is reported as a
  fault of the plugin, with its distribution, its version and the remedy.
* The import of the module, and the hook that returns the identity card, must not change the process or load a driver.
  A listing of the plugins calls them in a process of its own, redirects their output to stderr, and gives up after 20
  seconds.
* The contract grows by new optional hooks, new arguments and new fields with a default. `PLUGIN_API` changes only when
  old plugins would misbehave. This page describes plugin API {api}.
"""


def page() -> str:
    """Return the page."""
    parts = [FIRST_LINE, INTRODUCTION.strip().replace("{api}", str(plugin_types.PLUGIN_API))]
    for title, kind, wanted in (
        ("Required hooks of a backend", backend, False),
        ("Optional hooks of a backend", backend, True),
        ("Hook of an MPI kind", mpi, False),
    ):
        parts.append(f"## {title}")
        for name, hook in hooks(kind):
            if (name in kind.OPTIONAL) is wanted:
                parts += [f"### `{name}`", f"```python\n{signature(name, hook)}\n```", text(hook)]
    parts += ["## Classes and functions", f"The other names in `balsam_core.plugin`.\n\n{words()}"]
    for name in sorted(set(plugin.__all__) - WORDS, key=str.lower):
        found = getattr(plugin, name)
        if not _is_error(found):
            parts += list(_described(name, found))
    parts += ["## Errors", "Each takes a message: one line that says what was tried, what is wrong and what to do."]
    parts.append("\n".join(f"* `{one.__name__}`: {_marked(_first(one))}" for one in _errors()))
    return "\n\n".join(parts) + "\n"


def words() -> str:
    """Return the list of the names that are no classes or functions."""
    roles = ", ".join(f'`"{role}"`' for role in get_args(plugin.EngineRole))
    return (
        f"* `hookimpl` marks a function as a hook.\n"
        f"* `PLUGIN_API` is {plugin_types.PLUGIN_API}; a plugin writes the number itself.\n"
        f"* `EngineRole` is one of {roles}.\n"
        f"* `BackendModule` is a protocol for a static check: `_: BackendModule = sys.modules[__name__]`."
    )


def _is_error(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, BalsamError)


def _errors() -> list[type[BalsamError]]:
    found = [getattr(plugin, name) for name in plugin.__all__]
    return [one for one in found if _is_error(one)]


def _first(thing: object) -> str:
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def _described(name: str, found: Any) -> Iterator[str]:  # noqa: ANN401  (a class or a function)
    """Give a class with its public methods, or a function."""
    yield f"### `{name}`"
    if isinstance(found, type) and issubclass(found, enum.Enum):
        yield text(found)
        yield "\n".join(f"* `{name}.{one.name}`" for one in found)
        return
    yield f"```python\n{_call(name, found)}\n```"
    yield text(found)
    if not isinstance(found, type):
        return
    base = next((one.__name__ for one in found.__mro__[1:] if one.__name__ in plugin.__all__), "")
    if base:
        yield f"It is a `{base}`, with the methods of one."
    for member, kept in vars(found).items():
        value = getattr(kept, "__func__", kept)  # of a class method
        if (
            inspect.isfunction(value)
            and not member.startswith("_")
            and not any(hasattr(one, member) for one in found.__mro__[1:])
        ):
            yield f"```python\n{_call(f'{name}.{member}', value, bound=True)}\n```"
            yield text(value)
        elif isinstance(value, (property, cached_property)):
            yield f"`{name}.{member}`: {_marked(_first(value))}"


def _call(name: str, found: Any, *, bound: bool = False) -> str:  # noqa: ANN401
    """Return a signature as one calls it; without the first argument where that is bound."""
    called = inspect.signature(found)
    given = list(called.parameters.values())[bound:]
    stars = [one for one in given if one.kind is one.KEYWORD_ONLY][:1]
    parts = []
    for one in given:
        parts += ["*"] if one in stars else []
        kind = getattr(one.annotation, "__forward_arg__", one.annotation)
        default = ""
        if one.default is not one.empty:
            default = f" = {oct(one.default) if one.name == 'mode' else _plain(one.default)}"
        parts.append(f"{one.name}: {kind if isinstance(kind, str) else inspect.formatannotation(kind)}{default}")
    result = "" if isinstance(found, type) else f" -> {called.return_annotation}"
    return f"{name}({', '.join(parts)}){result}".replace("collections.abc.", "").replace("typing.", "")


def _plain(value: object) -> str:
    """Return a default value as Python source, or an ellipsis."""
    return "..." if repr(value).startswith("<") or isinstance(value, tuple) else repr(value)


def hooks(kind: ModuleType) -> list[tuple[str, Callable[..., object]]]:
    """Return the hooks of a kind of plugin by name, in the order of their definition."""
    found = [(name, getattr(kind, name)) for name in kind.__all__ if name.startswith("balsam_")]
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
