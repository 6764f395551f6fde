"""The watchdog: one process for each served DB directory, which keeps its server alive and its address published.

It runs the one foreground child that a backend's ``ServerPlan`` describes and knows nothing of databases.
:mod:`balsam_core.watchdog.control` starts it, and asks it to stop.

    control.py         start, stop, describe and reset a server    process.py         the watchdog's process
    supervisor.py      its loop: start, probe, publish, restart    server_process.py  the server, from start to end
    health.py          whether the server still answers            temporary.py       a server for one process alone
    takeover.py        how the lease is taken                      user_servers.py    what a bare --stop means
    stop_request.py    how a watchdog is asked to stop             options.py         what the user wants of a server
"""

from __future__ import annotations
