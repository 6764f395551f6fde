from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from balsam_core.system import filesystems
from balsam_core.system.filesystems import filesystem_type, is_network


@pytest.fixture
def kernel(monkeypatch):
    def say(magic, mounted=None):
        monkeypatch.setattr(filesystems, "statfs_magic", lambda path: magic)
        monkeypatch.setattr(filesystems, "_mounted_type", lambda path: mounted)

    return say


@pytest.mark.parametrize(
    ("magic", "name"),
    [
        (0x6969, "nfs"),
        (0x0BD00BD0, "lustre"),
        (0x47504653, "gpfs"),
        (0x19830326, "beegfs"),
        (0xFF534D42, "cifs"),
        (0xFE534D42, "smb"),
        (0x5346414F, "afs"),
        (0x00C36400, "ceph"),
        (0x01021997, "9p"),
        (0x20030528, "orangefs"),
        (0xAAD7AAEA, "panfs"),
    ],
)
def test_network_file_systems(kernel, tmp_path, magic, name):
    kernel(magic)
    assert filesystem_type(tmp_path) == name
    assert is_network(tmp_path)


@pytest.mark.parametrize("magic", [0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x2FC12FC1, 0x794C7630])
def test_local_file_systems(kernel, tmp_path, magic):
    kernel(magic)
    assert not is_network(tmp_path)


@pytest.mark.parametrize(
    ("mounted", "network"),
    [("fuse.sshfs", True), ("fuse.something-new", True), (None, True), ("fuseblk", False), ("fuse.bindfs", False)],
)
def test_fuse_is_told_apart_by_the_mount_table(kernel, tmp_path, mounted, network):
    kernel(0x65735546, mounted)
    assert filesystem_type(tmp_path) == (mounted or "fuse")
    assert is_network(tmp_path) is network


def test_unknown_number_is_named_by_the_mount_table(kernel, tmp_path):
    kernel(0x12345678, "wekafs")
    assert filesystem_type(tmp_path) == "wekafs"
    assert is_network(tmp_path)


def test_nothing_known_counts_as_local(kernel, tmp_path):
    kernel(None)
    assert filesystem_type(tmp_path) == "unknown"
    assert not is_network(tmp_path)


def test_path_that_does_not_exist_is_judged_by_its_parent(monkeypatch, tmp_path):
    monkeypatch.setattr(filesystems, "statfs_magic", {tmp_path: 0x6969}.__getitem__)
    assert is_network(tmp_path / "a" / "b")


def test_the_kernel_agrees_with_stat(tmp_path):
    said = subprocess.run(["stat", "-f", "-c", "%t", tmp_path], capture_output=True, text=True, check=True)
    assert filesystems.statfs_magic(tmp_path) == int(said.stdout, 16)


def test_the_kernel_says_nothing_of_a_missing_path(tmp_path):
    assert filesystems.statfs_magic(tmp_path / "missing") is None


def test_proc_is_found_in_the_mount_table():
    assert filesystems._mounted_type(Path("/proc")) == "proc"


def test_mount_points_serve_where_there_is_no_proc():
    assert filesystems._partition_type(Path("/proc/self")) == "proc"
