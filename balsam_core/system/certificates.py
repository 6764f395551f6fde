"""Self-signed certificates for a server whose clients pin its certificate.

A client that trusts this one certificate, and no other root, needs no host name in it: it stays valid on every host.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from balsam_core.errors import BackendError
from balsam_core.system.private_files import private_file, write_private

if TYPE_CHECKING:
    from pathlib import Path

_VALIDITY = timedelta(days=100 * 365)  # a new one is made by removing the old one
_CLOCK_SKEW = timedelta(days=2)  # that a client's clock may be behind


def make_certificate(certificate: Path, key: Path) -> None:
    """Make a self-signed certificate and its key, both PEM, 0600, where they are missing.

    Args:
        certificate: File of the X.509 certificate (RFC 5280), its own root.
        key: File of its ECDSA P-256 key (PKCS #8).

    Raises:
        BackendError: The library ``cryptography`` is missing.
        DBDirError: A file can't be written, or is open to other users.
    """
    if os.path.lexists(certificate) and os.path.lexists(key):
        private_file(key)
        return
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as err:
        raise BackendError(f"a certificate needs the library cryptography ({err}): pip install cryptography") from None
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "self-signed server")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SKEW)
        .not_valid_after(now + _VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(secret, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    encoded = secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(key, encoded)
    write_private(certificate, signed.public_bytes(pem))
