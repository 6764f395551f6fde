"""``dbwriter_address``: the JSON file where clients and the server of a DB directory meet.

It holds no secret: clients take keys and passwords from ``keys/``. It is replaced atomically, so that a reader never
sees a part of one. Knows nothing about starting servers or talking to them.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

import msgspec

from balsam_core.errors import AddressError, BackendError, BalsamError, Corrupt, DBDirError, SchemaMismatch
from balsam_core.system.files import atomic_write, is_directory, pasted, read_regular, reason, shown
from balsam_core.system.permissions import is_refusal, who_may
from balsam_core.system.processes import is_alive, this_machine

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

FORMAT = 1  # of the file; a program refuses a newer one
_MAX_BYTES = 64 * 1024
_HOST = re.compile(r"[A-Za-z0-9_.:%-]{1,255}")  # names, IPv4, IPv6 with zone; no scheme, no path
_WORD = re.compile(r"[\w.:/%+-]{0,255}")  # safe to show in messages, and to copy to a command line
_MAX_PORT = 65535
_LONGEST_REASON = 600  # characters of a failure's reason that are shown
_FAILURES: dict[str, type[BalsamError]] = {kind.code: kind for kind in (DBDirError, Corrupt, SchemaMismatch)}


class Address(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Where the server of a DB directory is, and which process it is.

    A process is proven to be the published one only if ``node``, ``boot_id``, ``pid_namespace``, ``pid`` and
    ``start_time`` all match. Unknown members of the file are ignored, so that a later version may add some.

    Attributes:
        format: Version of the file's layout.
        state: ``stopped`` means that no server is published and the other members say nothing. ``failed`` means that
            the server was given up: nobody may use the DB until it is started again or stopped. A file without it is
            damaged: nobody may conclude from it that no server runs.
        host: Name or address that clients connect to.
        port: TCP port that clients connect to, 1 to 65535.
        protocol: What is spoken there, e.g. ``balsam/1`` or ``postgresql``.
        node: Host name of the machine that the process runs on.
        boot_id: The machine's boot id (``/proc/sys/kernel/random/boot_id``), empty where there is none.
        pid: Process id of the server.
        pid_namespace: The namespace of the process id, 0 for unknown; see
            :class:`balsam_core.system.processes.Machine`.
        start_time: When that process started; see :func:`balsam_core.system.processes.start_of`.
        directory: Inode of the DB directory that it serves, 0 for unknown: a copy of the directory is not served.
        generation: Number of this publication, ``epoch`` in the file; a server with a smaller one has been replaced.
            When no server is published, the number of the last publication.
        details: What else the backend's clients need, e.g. a database name; never a secret. For ``failed``: the
            ``code`` of the error, the ``reason`` in words, and the name of the ``log`` that tells more.
    """

    format: int = FORMAT
    state: Literal["stopped", "running", "failed"]
    host: str = ""
    port: int = 0
    protocol: str = ""
    node: str = ""
    boot_id: str = ""
    pid: int = 0
    pid_namespace: int = 0
    start_time: float = 0.0
    directory: int = 0
    generation: int = msgspec.field(default=0, name="epoch")
    details: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        """Host and port, as in ``login1:4711``."""
        return endpoint(self.host, self.port)

    @property
    def place(self) -> str:
        """The endpoint, by the name that the first plugins use."""
        return self.endpoint

    @property
    def epoch(self) -> int:
        """The generation, by the name that the first plugins use."""
        return self.generation


def endpoint(host: str, port: int) -> str:
    """Return host and port as people and ZeroMQ write them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_decode = msgspec.json.Decoder(Address).decode
_overrides: dict[Path, Address] = {}  # servers that this process alone uses, by DB directory


@contextmanager
def override(db: DBDir, server: Address) -> Iterator[None]:
    """Make :func:`read` return this address inside the block, in this process only."""
    _overrides[db.path] = server
    try:
        yield
    finally:
        del _overrides[db.path]


def read(db: DBDir) -> Address | None:
    """Return the published address, or None when no server is published.

    Raises:
        AddressError: The file is missing, too large, a symbolic link, garbage or holds impossible values.
        SchemaMismatch: A newer Balsam wrote it.
        BalsamError: The server was given up; see :func:`failure`.
    """
    found = find(db)
    if found is not None and found.state == "failed":
        raise _failure(db, found)
    return found


def find(db: DBDir) -> Address | None:
    """Return what :func:`read` does, or the note that the server was given up, whose state is ``failed``."""
    if db.path in _overrides:
        return _overrides[db.path]
    address = _read_file(db)
    if address.state == "stopped" or (is_here(address) and is_copied(db, address.directory)):
        return None
    return address


def failure(db: DBDir) -> BalsamError | None:
    """Return why the server was given up, as the error for whoever wants to use the DB; None where it was not.

    Raises:
        SchemaMismatch: A newer Balsam wrote the file.
    """
    try:
        found = find(db)
    except AddressError:
        return None
    return _failure(db, found) if found is not None and found.state == "failed" else None


def _failure(db: DBDir, note: Address) -> BalsamError:
    path, details = shown(db.path), note.details
    why = "".join(char if char.isprintable() else "?" for char in details.get("reason", ""))[:_LONGEST_REASON]
    log = details.get("log", "")
    see = shown(db.log / log if _WORD.fullmatch(log) and "/" not in log else db.log)
    return _FAILURES.get(details.get("code", ""), BackendError)(
        f"the server of {path} was given up: {why or 'nobody knows why'}; see {see}, then start it again with "
        f"balsam dbserver --path={pasted(db.path)}"
    )


def publish_failure(db: DBDir, kind: type[BalsamError], reason: str, *, directory: int, log: str) -> None:
    """Publish that the server was given up.

    Args:
        db: The DB directory.
        kind: The class of the error that everybody gets; :class:`BackendError` for one that would be waited for.
        reason: Why, on one line.
        directory: As of :class:`Address`.
        log: Name of the log file that tells more; empty for none.

    Raises:
        SchemaMismatch: A newer Balsam wrote the file.
        OSError: The file can't be written.
    """
    here = this_machine()
    details = {"code": kind.code, "reason": reason, "log": log}
    note = Address(state="failed", node=here.node, boot_id=here.boot_id, directory=directory, details=details)
    write(db, msgspec.structs.replace(note, generation=last_generation(db)))


def is_copied(db: DBDir, directory: int) -> bool:
    """Say whether a file which names this inode, or 0, was written in a directory that this one is a copy of.

    Valid only on the machine that wrote it: some network file systems have other inode numbers on each.

    Raises:
        AddressError: The directory can't be looked at.
    """
    try:
        return directory != 0 and directory != db.path.stat().st_ino
    except OSError as err:
        raise AddressError(f"{shown(db.path)} can't be looked at: {reason(err)}") from None


def is_here(published: Address) -> bool:
    """Say whether the published server runs on this machine."""
    here = this_machine()
    return (published.node, published.boot_id) == (here.node, here.boot_id)


def is_gone(published: Address) -> bool:
    """Say whether the published server's process is proven dead; one of another machine or container never is."""
    same = is_here(published) and published.pid_namespace in {0, this_machine().pid_namespace}
    return same and not is_alive(published.pid, published.start_time)


def last_generation(db: DBDir) -> int:
    """Return the number of the last publication; 0 when there was none, or the file can't be understood.

    Raises:
        SchemaMismatch: A newer Balsam wrote the file.
    """
    try:
        return max(0, _read_file(db).generation)
    except AddressError:
        return 0


def write(db: DBDir, address: Address) -> None:
    """Replace the published address atomically.

    Raises:
        AddressError: The address holds impossible values.
        OSError: The file can't be written.
    """
    if fault := _fault_in(address):
        raise AddressError(f"an address that can't be published: {fault}")
    atomic_write(db.address_file, msgspec.json.format(msgspec.json.encode(address), indent=2) + b"\n")


def withdraw(db: DBDir) -> None:
    """Publish that no server runs, as ``balsam init`` does first; the generation is kept.

    Raises:
        SchemaMismatch: A newer Balsam wrote the file.
        OSError: The file can't be written.
    """
    write(db, Address(state="stopped", generation=last_generation(db)))


def _read_file(db: DBDir) -> Address:
    name = shown(db.address_file)
    remedy = f"if that lasts, balsam init {pasted(db.path)} writes it again"
    try:
        data = read_regular(db.address_file, limit=_MAX_BYTES, follow=False)
    except FileNotFoundError:
        raise AddressError(f"{name} is missing; {remedy}") from None
    except OSError as err:
        if is_refusal(err):
            remedy = who_may(db.address_file)
        elif is_directory(db.address_file):
            remedy = "it is a directory: move it away"
        raise AddressError(f"{name} can't be read: {reason(err)}; {remedy}") from None
    try:
        address = _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        why = " ".join(ascii(str(err))[1:-1].split())
        raise AddressError(f"{name} can't be understood: {why}; {remedy}") from None
    if address.format > FORMAT:
        raise SchemaMismatch(f"{name} has format {address.format}, this Balsam knows {FORMAT}: upgrade with pip")
    if fault := _fault_in(address):
        raise AddressError(f"{name} is wrong: {fault}; {remedy}")
    return address


def _fault_in(address: Address) -> str | None:
    if address.format < 1:
        return f"format {address.format}"
    if address.state != "running":
        return None
    faults = {
        f"the host {address.host[:80]!a} is no host name or IP address": not _HOST.fullmatch(address.host),
        f"the node {address.node[:80]!a} is no host name": not _WORD.fullmatch(address.node),
        f"the protocol {address.protocol[:80]!a} is no word": not _WORD.fullmatch(address.protocol),
        f"the port {address.port} is not between 1 and {_MAX_PORT}": not 0 < address.port <= _MAX_PORT,
        f"the process id {address.pid} is not positive": address.pid <= 0,
        f"the generation {address.generation} is negative": address.generation < 0,
    }
    return next((text for text, wrong in faults.items() if wrong), None)
