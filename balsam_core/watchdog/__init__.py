"""The watchdog: one process for each served DB directory, which keeps its server alive and its address published.

It runs the one foreground child that a backend's ``ServerPlan`` describes and knows nothing of databases.
:mod:`balsam_core.watchdog.control` starts it, and asks it to stop.

    process.py         the process: detached, or in the foreground    lease.py, takeover.py  who may run the server
    supervisor.py      its loop: start, probe, publish, restart        stop_request.py        how it is asked to stop
    server_process.py  the child, child.py ties it to the watchdog     network.py, locks.py   ports; locks that may lie
    health.py          whether the child still answers                 user_servers.py        what a bare --stop means
    options.py         what the user wants of a server
"""

from __future__ import annotations
