"""The values that pass between the core and a plugin.

All are frozen and keyword-only: the contract grows by fields that have a default. Plugin authors import these names
from :mod:`balsam_core.plugin`.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePath
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

__all__ = [
    "PLUGIN_API",
    "PLUGIN_NAME",
    "DBType",
    "EngineRole",
    "MPIKind",
    "PluginCard",
    "ServerPlan",
    "ServerPolicy",
]

PLUGIN_API = 1
"""Version of the plugin contract that this core speaks. It changes only when old plugins would misbehave."""

EngineRole = Literal["owner", "writer", "reader", "server"]
"""``owner`` may change tables, ``writer`` rows, ``reader`` nothing; ``server`` is the core's write server."""

LONGEST_TITLE = 60  # characters
LARGEST_MPI_KIND = 16 * 1024  # characters of template and environment

PLUGIN_NAME = re.compile(r"[a-z][a-z0-9_]*")
"""What a db type, and the name of any other plugin, must match, whole."""


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


class ServerPolicy(Enum):
    """Whether a database of this type is reached through a server that Balsam starts."""

    NONE = "none"
    """Balsam runs no server, and ``balsam_start_server`` is not called."""
    OPTIONAL = "optional"
    """Without a published address the backend opens the files itself."""
    REQUIRED = "required"
    """Without a published address ``balsam_open_transport`` raises ServerNotRunning."""


@dataclass(frozen=True, kw_only=True)
class PluginCard:
    """What a plugin of any kind says of itself: its identity card.

    Attributes:
        name: The same word as the entry point's name: ``[a-z][a-z0-9_]*``.
        title: Name for people.
        plugin_api: The :data:`PLUGIN_API` that the plugin was written for, as a literal number.

    Raises:
        ValueError: The name or the title is not well formed.
        TypeError: A field has the wrong type.
    """

    NOUN: ClassVar[str] = "plugin"
    TYPES: ClassVar[dict[str, type]] = {"name": str, "title": str, "plugin_api": int}

    name: str
    title: str
    plugin_api: int

    def __post_init__(self) -> None:
        if not PLUGIN_NAME.fullmatch(str(self.name)):
            raise ValueError(
                f"the {self.NOUN} {self.name!r} is not a lower-case word of letters, digits and underscores"
            )
        what = f"{type(self).__name__}({self.name!r})"
        wrong = [name for name, kind in self.TYPES.items() if not isinstance(getattr(self, name), kind)]
        if wrong:
            raise TypeError(f"{what}: {wrong[0]} must be of type {self.TYPES[wrong[0]].__name__}")
        if not self.title.isprintable() or not 0 < len(self.title) <= LONGEST_TITLE:
            raise ValueError(f"{what}: the title must be printable, of 1 to {LONGEST_TITLE} characters")


@dataclass(frozen=True, kw_only=True)
class DBType(PluginCard):
    """What a backend is: its identity card, for which no driver is imported.

    Attributes:
        name: The db type, the same word as the entry point's name: ``[a-z][a-z0-9_]*``.
        title: Name for people, e.g. ``PostgreSQL``.
        server: Whether a server is needed.
        plugin_api: The :data:`PLUGIN_API` that the plugin was written for, as a literal number: the core's constant
            would always match.
        driver: Top-level module that must be importable for the backend to work, e.g. ``psycopg``; empty for none.
        driver_remedy: How to get a missing driver, e.g. ``pip install psycopg[binary]``.
        options: What ``balsam init --option NAME=VALUE`` accepts: name to one line of explanation.
        capabilities: Differences from other backends, in the words of the conformance suite.

    Raises:
        ValueError: The name is not well formed.
        TypeError: A field has the wrong type.
    """

    NOUN = "db type"
    TYPES: ClassVar[dict[str, type]] = {
        **PluginCard.TYPES,
        "server": ServerPolicy,
        "driver": str,
        "driver_remedy": str,
        "options": Mapping,
        "capabilities": AbstractSet,
    }

    server: ServerPolicy
    driver: str = ""
    driver_remedy: str = ""
    options: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    capabilities: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        if "." in self.driver:
            raise ValueError(f"DBType({self.name!r}): the driver must be a top-level module, not {self.driver!r}")


@dataclass(frozen=True, kw_only=True)
class MPIKind(PluginCard):
    """A way to start the ranks of a job, of which a launcher needs to know nothing more.

    Attributes:
        name: What users give to ``--mpi``, the same word as the entry point's name: ``[a-z][a-z0-9_]*``.
        title: Name for people, e.g. ``TACC ibrun``.
        plugin_api: The :data:`PLUGIN_API` that the plugin was written for, as a literal number.
        template: The words before the job's command line. The first is the program, which is searched in ``PATH``.
            In the others ``{ranks}`` (in all), ``{ranks_per_node}``, ``{nodes}``, ``{threads_per_rank}``,
            ``{threads_per_core}`` and ``{gpus_per_rank}`` are filled. The program must not bind ranks to processors:
            two jobs on one node would get the same ones.
        environment: Variables for its runs, where neither the launcher nor the job has them.
        detected_by: Name of an environment variable. Where a launcher has it, and the program, it takes this kind
            unless the user names another. Empty: only when named.

    Raises:
        ValueError: A field can't be right.
        TypeError: A field has the wrong type.
    """

    NOUN = "MPI kind"
    TYPES: ClassVar[dict[str, type]] = {
        **PluginCard.TYPES,
        "template": tuple,
        "environment": Mapping,
        "detected_by": str,
    }

    template: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=_nothing, hash=False)
    detected_by: str = ""

    def __post_init__(self) -> None:
        from balsam_core.model.command import check_ranks_template

        super().__post_init__()
        what = f"MPIKind({self.name!r})"
        texts: list[object] = [*self.template, *self.environment, *self.environment.values(), self.detected_by]
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise TypeError(f"{what}: template and environment must be of printable texts")
        if len("".join(map(str, texts))) > LARGEST_MPI_KIND:
            raise ValueError(f"{what}: template and environment are larger than {LARGEST_MPI_KIND} characters")
        if wrong := [name for name in self.environment if not name or "=" in name]:
            raise ValueError(f"{what}: {wrong[0]!r} can't be the name of an environment variable")
        try:
            check_ranks_template(self.template)
        except ValueError as err:
            raise ValueError(f"{what}: template: {err}") from None


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """How to run a database's server: one foreground child, which the core starts, probes, watches and stops.

    Attributes:
        argv: Program and arguments; never a shell line, never a secret.
        host: Host that clients connect to, for the published address.
        port: TCP port that clients connect to.
        protocol: What is spoken there, for the published address, e.g. ``postgresql``.
        is_ready: Called with seconds it may take; True once clients can connect. It must work before the schema exists.
            Raising stops the start with that error.
        details: What else clients need from the published address; never a secret.
        env: Added to the child's environment.
        unset: What the names of variables begin with that the child must not inherit, e.g. ``("PG",)``.
        cwd: The child's working directory; None for the DB directory.
        user: Account to run as when the core runs as root; None for root. See :class:`ServerAccount`.
        stop: Signals to send in turn, each with the seconds to wait for the exit; then SIGKILL.
        orphaned: Signal that the system sends to the child when the watchdog dies, where it can (Linux); None for the
            first of ``stop``. SIGKILL for a server that another signal may hang, if it recovers from that.
        ready_timeout: Seconds until a child that isn't ready counts as failed.

    Raises:
        TypeError: A field can't be used.
    """

    argv: Sequence[str]
    host: str
    port: int
    protocol: str
    is_ready: Callable[[float], bool]
    details: Mapping[str, str] = field(default_factory=_nothing)
    env: Mapping[str, str] = field(default_factory=_nothing)
    cwd: Path | None = None
    user: str | None = None
    stop: Sequence[tuple[signal.Signals, float]] = ((signal.SIGTERM, 30.0),)
    orphaned: signal.Signals | None = None
    ready_timeout: float = 60.0
    unset: Sequence[str] = ()

    def __post_init__(self) -> None:
        right = {
            "argv": not isinstance(self.argv, str) and bool(self.argv) and _all_instances(str, self.argv),
            "host": _all_instances(str, [self.host]) and bool(self.host),
            "port": _all_instances(int, [self.port]) and 0 < self.port < 2**16,
            "protocol": _all_instances(str, [self.protocol]),
            "is_ready": callable(self.is_ready),
            "details": _all_instances(str, *self.details.items()),
            "env": _all_instances(str, *self.env.items()),
            "cwd": _all_instances((PurePath, NoneType), [self.cwd]),
            "user": _all_instances((str, NoneType), [self.user]),
            "stop": _all_instances((int, float), *self.stop),
            "orphaned": _all_instances((int, NoneType), [self.orphaned]),
            "ready_timeout": _all_instances((int, float), [self.ready_timeout]),
            "unset": not isinstance(self.unset, str) and _all_instances(str, self.unset),
        }
        wrong = [name for name, is_right in right.items() if not is_right]
        if wrong:
            raise TypeError(f"ServerPlan: {wrong[0]} can't be {str(getattr(self, wrong[0]))[:60]!r}")


def _all_instances(kind: type | tuple[type, ...], *groups: Iterable[object]) -> bool:
    return all(isinstance(one, kind) for group in groups for one in group)
