"""Write ``docs/reference/fault-tests.md`` from the file of results that ``make test-faults`` leaves."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("reference") / "fault-tests.md"
HEAD = """# Fault tests

What is done to the write server, to the servers of PostgreSQL and MariaDB, and to their clients, and what was seen.
The criterion throughout: no acknowledged write lost, none applied twice, no manual clean-up, clients resume within 5
seconds.

Clients write and keep a journal of what they were told. Of their writes some are *acked* (acknowledged), some end in
*errors*, and some are *open* (the client was killed first); those with an unknown outcome may be *applied* or not.
*Exact* means that the database holds what the journals say, each row once. Then come acknowledged writes per second and
their latency (p50, p99, worst), *stall*, the longest time in which no client was acknowledged anything, and *wait*, the
same for one client.

`make test` runs a quick form of each; `make test-faults` runs these amounts and writes this page. Times depend on the
machine, here {machine}.

| id | fault | seen |
|---|---|---|
"""


def main() -> None:
    results = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    rows = sorted({(row["id"], row["fault"]): row["seen"] for row in map(json.loads, results) if row["full"]}.items())
    machine = f"{len(os.sched_getaffinity(0))} cores, {platform.system()}, Python {platform.python_version()}"
    lines = [f"| {ident} | {fault} | {seen.replace('|', '/')} |\n" for (ident, fault), seen in rows]
    PAGE.write_text(HEAD.format(machine=machine) + "".join(lines), encoding="utf-8")
    print(f"{PAGE}: {len(rows)} rows")


if __name__ == "__main__":
    main()
