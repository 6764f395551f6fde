"""The installed plugins of one kind: which there are, what is known of each, and how they are listed.

None of their code is loaded into this process. What is known comes from another one, or from an earlier look.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from balsam_core.backends.discovery import entry_points, normalized
from balsam_core.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from balsam_core.backends.discovery import EntryPoint
    from balsam_core.backends.kinds import PluginKind
    from balsam_core.backends.reports import ProbeReport


@dataclass(frozen=True, kw_only=True)
class PluginStatus:
    """One line of ``balsam plugins list``.

    Attributes:
        name: The db type, or the name of another kind of plugin.
        kind: Name of the kind.
        package: Distribution that offers it; several when they use the same name.
        version: Its version.
        status: ``ok``, ``driver missing``, ``broken``, ``incompatible`` or ``not installed``.
        detail: Why, on one line; when ok, which other package is ignored, else empty.
        remedy: What to do, on one line.
        server: Of a backend ``none``, ``optional``, ``required``; empty where it is unknown.
        api: The plugin API that it was written for, None where it is unknown.
        module: The module with its hooks.
        default: Whether it is taken when none of its kind is named.
        traceback: Of the exception, for ``balsam plugins check``; empty when there is none.
    """

    name: str
    kind: str
    package: str
    version: str = ""
    status: str = "ok"
    detail: str = ""
    remedy: str = ""
    server: str = ""
    api: int | None = None
    module: str = ""
    default: bool = False
    traceback: str = ""


class InstalledPlugins:
    """The installed plugins of one kind.

    Args:
        kind: The kind.
        points: Their entry points; None for those that are installed.

    Attributes:
        kind: The kind.
        entry_points: By name, all its entry points: one, if all is well.
    """

    def __init__(self, kind: PluginKind, points: Sequence[EntryPoint] | None = None) -> None:
        self.kind = kind
        self.entry_points: dict[str, list[EntryPoint]] = {}
        for point in entry_points(kind) if points is None else points:
            self.entry_points.setdefault(point.name, []).append(point)
        self._ignored: dict[str, list[EntryPoint]] = {}  # other packages that take the name of an official one
        for name, found in self.entry_points.items():
            if official := [point for point in found if normalized(point.package) == kind.official.get(name)]:
                self.entry_points[name] = official
                self._ignored[name] = [point for point in found if point not in official]

    def installed_name(self, name: str) -> str:
        """Return the name of the plugin that a user means.

        Raises:
            BackendError: It is not installed.
        """
        if name in self.entry_points:
            return name
        installed = ", ".join(sorted(self.entry_points)) or "none"
        raise BackendError(f"there is no {self.kind.card.NOUN} {name!a} (installed: {installed})")

    def look_at(self, names: Sequence[str]) -> dict[str, ProbeReport]:
        """Return what is known of plugins; one that isn't known to work is loaded in a process of its own.

        Raises:
            NoResources: They can't be looked at now.
        """
        from balsam_core.backends import reports

        wanted = {name: self.entry_points[name] for name in names}
        found = reports.find(wanted)
        if len(found) < len(wanted):
            from balsam_core.backends.probe import probe

            missing = {name: points for name, points in wanted.items() if name not in found}
            found |= probe(missing, with_driver=False)
        return found

    def error_of(self, name: str, detail: str, remedy: str) -> BackendError:
        """Return the error of who uses a plugin that can't be used."""
        providers = " and ".join(point.provider for point in self.entry_points[name])
        return BackendError(f"{providers}, for the {self.kind.card.NOUN} {name}, can't be used: {detail}; {remedy}")

    def statuses(self) -> list[PluginStatus]:
        """Return the states of all installed plugins and of the official ones that are missing, sorted by name.

        Each is loaded in a process of its own, without its driver, if its state isn't known from an earlier listing.
        """
        found = self.look_at(list(self.entry_points))
        rows = [self._status(name, report) for name, report in found.items()]
        rows += [
            PluginStatus(
                name=name,
                kind=self.kind.name,
                package=package,
                status="not installed",
                remedy=f"pip install {package}",
                default=name == self.kind.default,
            )
            for name, package in self.kind.official.items()
            if name not in self.entry_points
        ]
        return sorted(rows, key=lambda row: row.name)

    def check(self, name: str | None = None) -> list[PluginStatus]:
        """Load one plugin or all, with their drivers, each in a process of its own; return states and tracebacks.

        Raises:
            BackendError: The named one is not installed.
        """
        from balsam_core.backends.probe import probe

        chosen = list(self.entry_points) if name is None else [self.installed_name(name)]
        reports = probe({one: self.entry_points[one] for one in chosen}, with_driver=True)
        return sorted((self._status(one, reports[one]) for one in chosen), key=lambda row: row.name)

    def _status(self, name: str, report: ProbeReport) -> PluginStatus:
        points = self.entry_points[name]
        from msgspec.structs import asdict

        known = asdict(report)
        del known["files"], known["mpi"]
        if ignored := self._ignored.get(name):
            others = " and ".join(f"{point.provider} ({point.location})" for point in ignored)
            what = f"ignored, since it takes the same name: {others}"
            known["detail"] = "; ".join(filter(None, [report.detail, what]))
            known["remedy"] = report.remedy or f"pip uninstall {' '.join(point.package for point in ignored)}"
        return PluginStatus(
            name=name if name.isprintable() else ascii(name),
            kind=self.kind.name,
            package=", ".join(point.package for point in points),
            version=", ".join(point.version for point in points),
            module=points[0].module,
            default=name == self.kind.default,
            **known,
        )
