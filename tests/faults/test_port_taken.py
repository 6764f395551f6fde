"""Another program takes the server's port while the server is down."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import time

from amounts import at_most
from exact import exact_report, writers
from resources import wait_for_end

from balsam_core.testing.tools import wait_until

READER = """
import sys
from pathlib import Path
from balsam_core.dbdir import address
from balsam_core.dbdir.directory import DBDir

db, stop, least = DBDir.open(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
reads, generations = 0, set()
while reads < least or not stop.exists():
    published = address.read(db)  # raises where it can't be understood
    assert published is not None, "withdrawn"
    generations.add(published.generation)
    reads += 1
    if reads == 1:
        print("reading", flush=True)
print(reads, len(generations))
"""


def binds(taker, where):
    """Say whether a socket could be given this address."""
    try:
        taker.bind((where.host, where.port))
    except OSError as err:
        if err.errno != errno.EADDRINUSE:
            raise
        return False
    return True


@contextlib.contextmanager
def occupied(where):
    """Take a port and accept whoever comes, without a word."""
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # The threads of the killed server may end a moment later than what is seen of it.
        wait_until(lambda: binds(taker, where), "the end of the server's socket", seconds=at_most(10))
        taker.listen(100)
        yield taker


def test_port_taken_at_the_restart(served, tmp_path, amount, verdict):
    """Another program takes the port of a killed server: the next one publishes another port, nothing is lost (T14)."""
    rounds, least = amount(2, 20), amount(5_000, 100_000)
    stop = tmp_path / "enough"
    resumed = []
    words = [sys.executable, "-c", READER, str(served.path), str(stop), str(least)]
    with (
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reader,
        writers(served.path, 8, tmp_path) as clients,
    ):
        try:
            assert reader.stdout.readline() == "reading\n"
            clients.begin()
            for _ in range(rounds):
                clients.wait_for_more(50)
                before, watchdog = served.address, served.watchdog
                os.kill(watchdog, signal.SIGSTOP)  # so that it doesn't take the port first
                served.kill_server()
                wait_for_end([before.pid])
                with occupied(before):
                    began = time.monotonic()
                    os.kill(watchdog, signal.SIGCONT)
                    now = served.wait_for_another(before)
                    assert now.port != before.port
                    clients.wait_for_more(20, seconds=at_most(5))
                    resumed.append(time.monotonic() - began)
            clients.stop()
            clients.finish()
            journals = clients.journals
            stop.touch()
            out, err = reader.communicate(timeout=120)
        finally:
            reader.kill()
    assert reader.returncode == 0, err
    reads, generations = map(int, out.split())
    report = exact_report(served, journals)
    assert max(resumed) <= at_most(5)
    verdict(
        "T14",
        "port taken at the restart",
        f"{rounds} times: new port published, clients resumed within {max(resumed):.2f} s; {reads} reads of the address"
        f" saw {generations} publications, 0 unparsable: {report}",
    )
