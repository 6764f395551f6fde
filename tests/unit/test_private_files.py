"""Files with secrets, and the certificate of a database's own server."""

from __future__ import annotations

import os
import stat

import pytest

from balsam_core.errors import DBDirError
from balsam_core.system.certificates import make_certificate
from balsam_core.system.private_files import private_file, write_private


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o002, 0o000])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_what_is_written_is_the_owner_s_alone(tmp_path, umask):
    file = tmp_path / "keys" / "password"
    write_private(file, b"secret")
    assert private_file(file) == b"secret"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_is_open_to_others_is_not_used(tmp_path, bits):
    file = tmp_path / "password"
    write_private(file, b"secret")
    file.chmod(bits)
    with pytest.raises(DBDirError, match="open to other users: make it private with chmod 600"):
        private_file(file)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_file_is_root_s_to_read_and_nobody_else_s(tmp_path):
    file = tmp_path / "password"
    write_private(file, b"secret")
    os.chown(file, 65534, 65534)
    assert private_file(file) == b"secret"


@pytest.mark.parametrize("kind", ["missing", "link", "directory", "fifo"])
def test_what_is_no_file_is_told_in_a_line(tmp_path, kind):
    file = tmp_path / "password"
    if kind == "link":
        file.symlink_to("/etc/hostname")
    elif kind == "directory":
        file.mkdir(mode=0o700)
    elif kind == "fifo":
        os.mkfifo(file, 0o600)
    with pytest.raises(DBDirError, match=r"is missing|can't be read"):
        private_file(file)


def test_secrets_are_not_written_through_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "keys").symlink_to("elsewhere")
    with pytest.raises(DBDirError, match="is a symbolic link"):
        write_private(tmp_path / "keys" / "password", b"secret")


def test_a_certificate_is_made_once_and_signs_itself(tmp_path, umask):
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    certificate, key = tmp_path / "keys" / "db.crt", tmp_path / "keys" / "db.key"
    make_certificate(certificate, key)
    first = certificate.read_bytes()
    make_certificate(certificate, key)
    assert certificate.read_bytes() == first
    loaded = x509.load_pem_x509_certificate(first)
    loaded.verify_directly_issued_by(loaded)
    assert loaded.public_key() == load_pem_private_key(key.read_bytes(), None).public_key()
    assert mode(certificate) == mode(key) == 0o600
