"""The write server: one process that alone writes to a database and that clients reach through ZeroMQ.

For engines that want a single writer. SQLite is one; a third party's embedded engine uses the same door,
``balsam_core.plugin``: :class:`~balsam_core.proxy.single_writer.SingleWriter` says how the engine is opened,
:func:`~balsam_core.proxy.single_writer.write_server_plan` how the server is run, and
:class:`~balsam_core.proxy.client.routing.ServedTransport` goes through the server while one is published.

    client.py   ProxyTransport        protocol.py  what travels, limits      server.py   the socket's loop
    routing.py  server or file?       keys.py      CURVE keys                writer.py   group commit, exactly once
                                      zap.py       who may talk              readers.py  reads beside the writer
"""

from __future__ import annotations
