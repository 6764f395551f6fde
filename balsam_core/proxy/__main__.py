"""The write server's process: ``python -m balsam_core.proxy DIR --engine MODULE:FUNCTION --host H --port N``.

Started, watched and stopped by the watchdog; SIGTERM ends it after the batch in hand. The last line on stderr says why
it ended by itself, and the exit code is that of the error: 6 for what may pass, 1 for a fault of Balsam.
"""

from __future__ import annotations

import argparse
import logging
import os
import resource
import socket
import sys
import time
from pathlib import Path

import zmq

from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir
from balsam_core.dbdir.publication import Publication
from balsam_core.errors import BalsamError, Unavailable
from balsam_core.proxy.keys import make_keys
from balsam_core.proxy.server.readers import ReaderLostError, Readers
from balsam_core.proxy.server.server import Listener, WriteServer
from balsam_core.proxy.server.writer import BatchLostError, FencedError, GroupWriter
from balsam_core.proxy.server.zap import ZapAuthenticator
from balsam_core.proxy.single_writer import load_single_writer
from balsam_core.system import logs
from balsam_core.system.files import describe_error, shown
from balsam_core.system.processes import start_of
from balsam_core.system.signals import StopRequests

logger = logging.getLogger(__name__)

READERS = 2
LOGS = 50  # files of earlier servers that are kept
TICK = 1.0  # seconds between looks at the parent and the memory
MEMORY_LIMIT = 400 * 1024 * 1024  # bytes; a server that has more ends and is started again
ADDRESS_SPACE = 4 * 1024**3  # bytes; the hard stop behind it


def main(stops: StopRequests) -> int:
    """Serve until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m balsam_core.proxy")
    parser.add_argument("path", type=Path)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    chosen = parser.parse_args()
    os.umask(0o077)
    parent = os.getppid()
    try:
        db = DBDir.open(chosen.path)
        logging.raiseExceptions = False  # a full disk must not make the server chatter
        logs.configure(db.log, "server", context=f"db={shown(db.path)} port={chosen.port}", keep=LOGS)
        return _serve_db(db, chosen, parent, stops)
    except BatchLostError as err:
        return _report_end(f"the database failed while writing: {err}", err.error.exit_code)
    except FencedError:
        return _report_end("another server has taken over this DB", Unavailable.exit_code)
    except MemoryError:
        return _report_end("out of memory", Unavailable.exit_code)
    except Exception as err:
        if isinstance(err, (BalsamError, OSError)):
            return _report_end(describe_error(err), getattr(err, "exit_code", Unavailable.exit_code))
        logger.exception("the server ends")
        return _report_end(describe_error(err), 1)


def _report_end(why: str, code: int) -> int:
    logger.error("the server ends: %s", why)
    sys.stderr.write(f"Error: {' '.join(why.split())}\n")
    return code


def _serve_db(db: DBDir, chosen: argparse.Namespace, parent: int, stops: StopRequests) -> int:
    _raise_limits()
    single = load_single_writer(chosen.engine, db)
    keys = make_keys(db)
    # First of all, while there are no threads, no sockets and no open database to be carried over the fork.
    readers = Readers(db, single, READERS) if single.shared else None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    ZapAuthenticator(context, keys.client)
    try:
        listener = Listener(context, _numeric_address(chosen.host), chosen.port, keys)
    except zmq.ZMQError as err:
        raise Unavailable(f"can't listen on {chosen.host}:{chosen.port}: {str(err).lower()}") from err
    writer = GroupWriter(single, db.id)
    before = address.last_generation(db)
    publication = Publication(db)
    is_replaced = None if single.shared else lambda: publication.is_replaced(before)
    server = WriteServer(listener, writer, readers, is_replaced, stops.descriptor)
    logger.info("epoch %d: serving at %s:%d", writer.epoch, chosen.host, chosen.port)
    look_at = 0.0
    code = 0
    try:
        while stops.number is None:
            server.run_once(TICK)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + TICK
                if _is_orphaned(parent):
                    logger.warning("the watchdog is gone")
                    break
                _check_memory()
    except ReaderLostError:
        code = _report_end("a reading process has died", Unavailable.exit_code)
    finally:
        # Not closed when the database has failed: closing SQLite would write to it.
        logger.info("epoch %d: %d calls answered, %d messages dropped", writer.epoch, server.calls, server.dropped)
    writer.close()
    listener.close()
    context.term()
    if readers:
        readers.close()
    if _is_orphaned(parent):
        _withdraw_address(db)
    return code


def _is_orphaned(parent: int) -> bool:
    """Say whether the watchdog has died.

    Its first thread's death sends the signal; until the last one has died, too, it still is the parent, as a zombie.
    """
    return os.getppid() != parent or start_of(parent) is None


def _withdraw_address(db: DBDir) -> None:
    """Take back the published address if it is ours: nobody is left who would."""
    try:
        published = address.read(db)
    except BalsamError as err:  # whose it was can't be told; the next start writes it
        logger.warning("%s", err)
        return
    # Another host's or container's server may have the same number.
    if published and published.pid == os.getpid() and address.is_here(published) and not address.is_gone(published):
        address.withdraw(db)


def _raise_limits() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = ADDRESS_SPACE if most == resource.RLIM_INFINITY else min(ADDRESS_SPACE, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


def _check_memory() -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:  # not Linux
        return
    if pages * resource.getpagesize() > MEMORY_LIMIT:
        raise MemoryError


def _numeric_address(host: str) -> str:
    """Return the numeric address of a host name, as ZeroMQ wants it for listening."""
    try:
        found: str = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[assignment]
    except OSError as err:
        raise Unavailable(f"can't listen on {host}: {err.strerror or err}") from None
    return found


if __name__ == "__main__":
    with StopRequests() as requests:
        code = main(requests)
        logs.close()
        sys.stderr.flush()
        # Without the interpreter's cleaning up: it would close the database, which writes, even after a failure.
        os._exit(code)
