"""The CURVE keys of a DB directory's write server: https://rfc.zeromq.org/spec/26/.

``keys/server.key`` is the server's pair. ``keys/client.key`` is what a client needs: a pair that the server accepts,
and the server's public key, by which a client knows that it talks to no other. Neither is ever in
``dbwriter_address``.
Whoever can read the client's file can use the server; only the owner can read either.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec

from balsam_core.errors import DBDirError
from balsam_core.system.files import atomic_write, reason, shown
from balsam_core.system.private_files import private_file

if TYPE_CHECKING:
    from pathlib import Path

    from balsam_core.dbdir.directory import DBDir

_REMEDY = "stop the server, remove the files of keys/ and start it again: it makes new ones"

Key = Annotated[str, msgspec.Meta(pattern=r"^[ -~]{40}\Z")]  # Z85: 32 bytes
K = TypeVar("K", bound="ServerKeys | ClientKeys")


class ServerKeys(msgspec.Struct, frozen=True, kw_only=True):
    """The server's pair, in Z85 text.

    Attributes:
        public: Its public key.
        secret: Its secret key.
        client: The public key of the clients that it accepts.
    """

    public: Key
    secret: Key
    client: Key


class ClientKeys(msgspec.Struct, frozen=True, kw_only=True):
    """What a client needs, in Z85 text.

    Attributes:
        public: The clients' public key.
        secret: Their secret key.
        server: The server's public key.
    """

    public: Key
    secret: Key
    server: Key


def client_keys(db: DBDir) -> ClientKeys:
    """Read the keys of a client.

    Raises:
        DBDirError: They are missing, unreadable, damaged, or open to other users.
    """
    return _read_keys(db.keys / "client.key", ClientKeys)


def make_keys(db: DBDir) -> ServerKeys:
    """Return the server's keys; they are made, with those of the clients, where they are missing.

    Raises:
        DBDirError: They can't be made, or are damaged or open to other users.
    """
    import zmq

    server_file, client_file = db.keys / "server.key", db.keys / "client.key"
    try:
        db.keys.mkdir(mode=0o700, exist_ok=True)
        if db.keys.is_symlink():
            raise DBDirError(f"{shown(db.keys)} is a symbolic link, so keys would lie elsewhere: remove it")
        if os.path.lexists(server_file) and os.path.lexists(client_file):
            server, client = _read_keys(server_file, ServerKeys), _read_keys(client_file, ClientKeys)
            if (server.public, server.client) == (client.server, client.public):
                return server
        (public, secret), (client_public, client_secret) = (
            tuple(key.decode() for key in zmq.curve_keypair()) for _ in range(2)
        )
        server = ServerKeys(public=public, secret=secret, client=client_public)
        client = ClientKeys(public=client_public, secret=client_secret, server=public)
        atomic_write(server_file, msgspec.json.encode(server))
        atomic_write(client_file, msgspec.json.encode(client))
    except OSError as err:
        raise DBDirError(f"the keys in {shown(db.keys)} can't be made: {reason(err)}") from None
    return server


_DECODERS: dict[type, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (ServerKeys, ClientKeys)
}


def _read_keys(file: Path, kind: type[K]) -> K:
    try:
        data = private_file(file)
    except DBDirError as err:
        raise DBDirError(f"{err}, so this DB's server can't be used; {_REMEDY}") from None
    try:
        return _DECODERS[kind].decode(data)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise DBDirError(f"{shown(file)} is damaged: {_REMEDY}") from None
