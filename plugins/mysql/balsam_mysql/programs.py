"""Finding the programs of a MySQL or MariaDB server, and telling which of the two and which series they are."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from balsam_core.plugin import BackendError, ServerAccount, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BINDIR_VARIABLE = "BALSAM_MYSQL_BINDIR"
Variant = Literal["mariadb", "mysql"]
TITLES: dict[str, str] = {"mariadb": "MariaDB", "mysql": "MySQL"}

_SERVERS = ("mariadbd", "mysqld")
# Debian, Red Hat, the vendors' archives, Homebrew, MacPorts.
_USUAL_FOLDERS = (
    "/usr/sbin", "/usr/local/sbin", "/usr/libexec", "/usr/local/mysql/bin", "/usr/local/mariadb/bin",
    "/opt/mysql*/bin", "/opt/mariadb*/bin", "/opt/homebrew/opt/mariadb*/bin", "/opt/homebrew/opt/mysql*/bin",
    "/opt/local/lib/mariadb*/bin", "/opt/local/lib/mysql*/bin",
)  # fmt: skip
_VERSION = re.compile(r"\bVer (\d+\.\d+)\.\d+")
_INSTALL = (
    f"install MariaDB's server programs (Debian, Ubuntu: apt-get install mariadb-server-core mariadb-client), or name "
    f"their folder in the variable {BINDIR_VARIABLE} or with --option bindir=FOLDER"
)
_TIMEOUT = 20.0  # seconds for a program to print its version


@dataclass(frozen=True, kw_only=True)
class Programs:
    """A server's program and what it is.

    Attributes:
        server: Path of ``mariadbd`` or ``mysqld``.
        variant: Which of the two.
        series: The version that data directories are bound to, e.g. ``10.11``.
    """

    server: Path
    variant: Variant
    series: str

    @property
    def title(self) -> str:
        """Name and series, for people."""
        return _title(self.variant, self.series)

    @property
    def basedir(self) -> Path:
        """Prefix of the installation."""
        return self.server.resolve().parent.parent


def find_server(
    bindir: str = "",
    *,
    account: ServerAccount | None = None,
    strict: bool = False,
    wanted: tuple[str, str] | None = None,
) -> Programs:
    """Return the server's program to use: the first that suits.

    Args:
        bindir: A folder to look in first, as an option or a setting named it.
        account: As whom to run what is found; None for this process's own account.
        strict: Whether to look nowhere else.
        wanted: Variant and series of existing data; None where any will do.

    Raises:
        BackendError: There is none.
    """
    unsuitable = []
    for folders, named in _search_groups(bindir, strict=strict):
        has_any = False
        for program in _server_programs_in(folders):
            found = _identify(program, account or ServerAccount())
            if found is None:
                continue
            has_any = True
            if wanted is None or (found.variant, found.series) == wanted:
                return found
            unsuitable.append(f"{found.title} ({shown(found.server)})")
        if named and not has_any:
            raise BackendError(f"{shown(named)} holds neither mariadbd nor mysqld that works: {_INSTALL}")
        if named:
            break
    if unsuitable and wanted:
        raise BackendError(
            f"the data of this DB were made with {_title(*wanted)}, and here is only {', '.join(unsuitable)}: name "
            f"the folder of the old version's programs in the variable {BINDIR_VARIABLE}, or copy the jobs to a new DB"
        )
    raise BackendError(f"no MySQL or MariaDB server program is found: {_INSTALL}")


def find_client(names: Sequence[str], programs: Programs | None, package: str) -> str:
    """Return the path of a client program, from beside the server's or from PATH; of its names the first is the best.

    Raises:
        BackendError: It is not installed.
    """
    folders = [str(folder) for folder in ([programs.server.parent, programs.basedir / "bin"] if programs else [])]
    named = os.environ.get(BINDIR_VARIABLE, "")
    path = os.pathsep.join([*folders, *([named] if named else []), os.environ.get("PATH", os.defpath)])
    for name in names:
        if found := shutil.which(name, path=path):
            return found
    raise BackendError(f"the program {names[0]} is not found: install it (Debian, Ubuntu: apt-get install {package})")


def _title(variant: str, series: str) -> str:
    return f"{TITLES.get(variant, variant)} {series}"


def _search_groups(bindir: str, *, strict: bool) -> Iterator[tuple[list[Path], str]]:
    """Yield groups of folders to look in, each with the folder that a user named and that alone counts, else empty."""
    if bindir:
        yield _folders_around(Path(bindir)), bindir if strict else ""
    if named := os.environ.get(BINDIR_VARIABLE, ""):
        yield _folders_around(Path(named)), named
    on_path = [folder for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    yield [found for folder in on_path for found in _folders_around(Path(folder))], ""
    yield [found for usual in _USUAL_FOLDERS for found in sorted(Path("/").glob(usual.lstrip("/")), reverse=True)], ""


def _folders_around(folder: Path) -> list[Path]:
    """Return a folder and those where the same installation may keep its servers; it may also be a prefix."""
    if not os.path.isdir(folder):  # noqa: PTH112  (Path's own raises for one in a closed folder)
        return []
    return [folder, folder.parent / "sbin", folder.parent / "libexec", folder / "bin", folder / "sbin"]


def _server_programs_in(folders: Sequence[Path]) -> Iterator[Path]:
    known = set()
    for folder in folders:
        for name in _SERVERS:
            program = folder.expanduser() / name
            if os.access(program, os.X_OK) and program.is_file() and (real := program.resolve()) not in known:
                known.add(real)
                yield program.absolute()


def _identify(program: Path, account: ServerAccount) -> Programs | None:
    """Ask a program for its version; None where it doesn't say."""
    try:
        done = account.run([program, "--no-defaults", "--version"], timeout=_TIMEOUT)
    except BackendError:
        return None
    text = done.stdout.decode(errors="replace")
    version = _VERSION.search(text)
    if done.returncode or not version:
        return None
    return Programs(server=program, variant="mariadb" if "MariaDB" in text else "mysql", series=version[1])
