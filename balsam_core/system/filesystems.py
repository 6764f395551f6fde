"""Which file system a path is on, and whether other hosts can see it too.

Memory that processes map from a file is shared within one host only, and network file systems often have no working
locks. The kernel's magic number (``statfs``) identifies most file systems; all of FUSE have one number, and the mount
table has their names.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

# From the kernel's linux/magic.h, coreutils' stat.c and the file systems' own headers.
_LOCAL_MAGIC = {
    0x00000187: "autofs",
    0x0000EF53: "ext4",
    0x01021994: "tmpfs",
    0x2FC12FC1: "zfs",
    0x53464846: "wslfs",
    0x58465342: "xfs",
    0x65735546: "fuse",
    0x794C7630: "overlay",
    0x858458F6: "ramfs",
    0x9123683E: "btrfs",
    0xA501FCF5: "vxfs",
    0xCA451A4E: "bcachefs",
    0xF2F52010: "f2fs",
}
_NETWORK_MAGIC = {  # shared by several hosts, or by a virtual machine and its host
    0x0000517B: "smb",
    0x0000564C: "ncp",
    0x00006969: "nfs",
    0x00C36400: "ceph",
    0x01021997: "9p",
    0x01161970: "gfs2",
    0x013111A8: "ibrix",
    0x0BD00BD0: "lustre",
    0x19830326: "beegfs",
    0x20030528: "orangefs",
    0x47504653: "gpfs",
    0x5346414F: "afs",
    0x61636673: "acfs",
    0x6B414653: "afs",
    0x6E667364: "nfs",
    0x73757245: "coda",
    0x7461636F: "ocfs2",
    0x786F4256: "vboxsf",
    0x7C7C6673: "prl_fs",
    0xAAD7AAEA: "panfs",
    0xBACBACBC: "vmhgfs",
    0xBEEFDEAD: "snfs",
    0xFE534D42: "smb",
    0xFF534D42: "cifs",
}
# Besides, the names that only the mount table knows.
_NETWORK = set(_NETWORK_MAGIC.values()).union(
    ("afpfs", "dvs", "gfs", "nfs4", "pvfs2", "quobyte", "smb3", "smbfs", "virtiofs", "webdav", "wekafs")
)
# Kinds of FUSE that keep their files on this host. Any other counts as a network file system.
_LOCAL_FUSE = frozenset(
    ("fuseblk", "bindfs", "encfs", "exfat", "fuse-overlayfs", "gocryptfs", "mergerfs", "ntfs", "ntfs-3g", "portal")
)
_STATFS_SIZE = 1024  # bytes; struct statfs has 120 on x86_64


def statfs_magic(path: Path) -> int | None:
    """Return the kernel's magic number of the file system of an existing path; None where it has none.

    Nothing else asks the kernel, so that tests can replace this function.
    """
    if sys.platform != "linux":
        return None
    import ctypes

    buffer = ctypes.create_string_buffer(_STATFS_SIZE)
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), buffer) != 0:
        return None
    # f_type is the first member: a long, but a 32-bit number on s390x. All known numbers have at most 32 bits.
    size = ctypes.sizeof(ctypes.c_long)
    number = int.from_bytes(buffer.raw[:size], sys.byteorder)
    return number & 0xFFFFFFFF if size == 4 or number < 2**32 else number >> 32  # noqa: PLR2004


def filesystem_type(path: str | os.PathLike[str]) -> str:
    """Return the file system's name, e.g. ``ext4``, ``nfs``, ``fuse.sshfs``; ``unknown`` where it can't be found.

    For a path that doesn't exist yet, that of its nearest existing parent.
    """
    existing = Path(path).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    magic = statfs_magic(existing)
    name = "" if magic is None else _LOCAL_MAGIC.get(magic) or _NETWORK_MAGIC.get(magic, "")
    if name in {"", "fuse"}:
        name = _mounted_type(existing) or name
    return name or "unknown"


def is_network(path: str | os.PathLike[str]) -> bool:
    """Say whether other hosts may use the same files, so that shared memory and locks can't be relied on."""
    name = filesystem_type(path)
    return name in _NETWORK or (name.startswith("fuse") and name.removeprefix("fuse.") not in _LOCAL_FUSE)


def _mounted_type(path: Path) -> str | None:
    """Return the type that the mount table gives for the device of a path."""
    try:
        device = path.stat().st_dev
        table = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _partition_type(path)
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in table.splitlines():  # proc(5): id parent MAJOR:MINOR root mount-point options ... - TYPE source options
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) > 2 and fields[2] == wanted and right:  # noqa: PLR2004
            return right.split()[0]
    return None


def _partition_type(path: Path) -> str | None:
    """Return the type by mount point: for systems without ``/proc``, such as macOS."""
    import psutil

    try:
        partitions = psutil.disk_partitions(all=True)
    except (OSError, RuntimeError):
        return None
    above = [item for item in partitions if path.is_relative_to(item.mountpoint)]
    return max(above, key=lambda item: len(item.mountpoint)).fstype or None if above else None
