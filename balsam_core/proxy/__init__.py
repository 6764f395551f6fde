"""The write server: one process that alone writes to a database and that clients reach through ZeroMQ.

For engines that want a single writer. SQLite is one. A third party's embedded engine uses the same public API,
:mod:`balsam_core.plugin`: :class:`~balsam_core.proxy.single_writer.SingleWriter` says how the engine is opened,
:func:`~balsam_core.proxy.single_writer.write_server_plan` how the server is run, and
:class:`~balsam_core.proxy.client.served_transport.ServedTransport` goes through the server while one is published.

    client/                                   both                            server/
    served_transport.py  server or engine?    protocol.py  messages, limits   server.py   the loop around the socket
    exchange.py   one request, one answer     keys.py      CURVE keys         writer.py   group commit, exactly once
    channel.py    one connection, a probe     monitor.py   ZeroMQ's events    readers.py  reads beside the writer
                                              single_writer.py  the engine    zap.py      who may connect
                                                                            answers.py  calls and answers
"""

from __future__ import annotations
