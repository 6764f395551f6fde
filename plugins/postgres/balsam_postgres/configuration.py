"""How the server is configured: the content of its files, which are written anew for each start."""

from __future__ import annotations

ROLE = "balsam"
DATABASE = "balsam"

DURABILITY_RISKS = {
    "fsync": "a power cut may destroy the database",
    "full_page_writes": "a power cut may destroy the database",
    "synchronous_commit": "a power cut may undo writes that were acknowledged",
}
"""What each of these settings risks when it is off."""

_SETTINGS = """\
# Written anew by Balsam for each start: put settings of your own into site.conf, in this folder.

# Who may connect, and how; address, port and language are given on the command line.
unix_socket_directories = ''
password_encryption = 'scram-sha-256'
max_connections = 300
superuser_reserved_connections = 0
{tls}

# Modest: the machine is there for the jobs.
shared_buffers = 64MB
{shared_memory}
max_parallel_workers_per_gather = 0
max_parallel_maintenance_workers = 0
jit = off
# Tables that are filled and drained within minutes need their statistics sooner than by default.
autovacuum_naptime = 15s

# An acknowledged write is on the disk. Without the first two, a crash can destroy the database.
fsync = on
full_page_writes = on
synchronous_commit = on

# To stderr, which ends up in log/ of the DB directory; never a statement, which holds users' data.
log_destination = 'stderr'
logging_collector = off
log_min_messages = warning
log_min_error_statement = panic
log_statement = 'none'
log_checkpoints = off
log_line_prefix = '[%p] '
log_timezone = 'UTC'
timezone = 'UTC'
datestyle = 'ISO, MDY'
default_text_search_config = 'pg_catalog.simple'

{include}
"""
_TLS = "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_min_protocol_version = 'TLSv1.2'"

_ACCESS_RULES = f"""\
# Written anew by Balsam for each start. One role, one database, always with the password; nobody else.
host    {DATABASE} {ROLE} 127.0.0.1/32 scram-sha-256
host    {DATABASE} {ROLE} ::1/128      scram-sha-256
"""


def settings(*, encrypted: bool, site_file: bool, shared_memory: str = "") -> bytes:
    """Return the content of ``postgresql.conf``.

    Args:
        encrypted: Whether the server encrypts.
        site_file: Whether it reads ``site.conf`` as well.
        shared_memory: The kind of dynamic shared memory, which depends on the machine; empty for PostgreSQL's default.
    """
    tls, include = (_TLS if encrypted else "ssl = off"), ("include = 'site.conf'" if site_file else "")
    memory = f"dynamic_shared_memory_type = {shared_memory}" if shared_memory else ""
    return _SETTINGS.format(tls=tls, include=include, shared_memory=memory).encode()


def access_rules(*, encrypted: bool, remote: bool) -> bytes:
    """Return the content of ``pg_hba.conf``: whether other hosts may connect, and must use TLS."""
    others = f"{'hostssl' if encrypted else 'host   '} {DATABASE} {ROLE} all          scram-sha-256\n" if remote else ""
    return f"{_ACCESS_RULES}{others}".encode()
