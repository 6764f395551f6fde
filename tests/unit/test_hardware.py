"""What this machine lets us use."""

from __future__ import annotations

import os

import pytest

from balsam_core.system import hardware
from balsam_core.system.hardware import quota_group, usable_cores, visible_gpus


def test_the_affinity_mask_counts():
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {max(allowed)})
        assert usable_cores() == (max(allowed),)
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({"a/cpu.max": "150000 100000\n"}, 1),
        ({"a/cpu.max": "max 100000\n", "cpu.max": "100000 100000\n"}, 1),
        ({"a/b/cpu.max": "50000 100000\n", "a/cpu.max": "900000 100000\n"}, 1),
        ({"a/b/cpu.max": "max 100000\n"}, None),
        ({}, None),
        ({"a/b/cpu.max": "nonsense"}, None),
        ({"cpu/a/b/cpu.cfs_quota_us": "100000", "cpu/a/b/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    ],
)
def test_the_quota_of_each_control_group_above_counts(files, most, tmp_path, monkeypatch):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    version_1 = any(name.startswith("cpu/") for name in files)
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,cpuacct:/a/b\n2:memory:/x\n" if version_1 else "0::/a/b\n")
    monkeypatch.setattr(hardware, "_CGROUPS", tmp_path)
    monkeypatch.setattr(hardware, "_MEMBERSHIP", membership)
    mask = len(os.sched_getaffinity(0))
    assert len(usable_cores()) == (mask if most is None else min(most, mask))
    if mask > 1:
        assert len(quota_group()) == (0 if most is None else 2)


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,2"}, ("0", "2")),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c, GPU-7a"}, ("GPU-8932f937-d72c", "GPU-7a")),
        ({"CUDA_VISIBLE_DEVICES": ""}, ()),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, ()),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, ("1",)),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, ()),
        ({"ROCR_VISIBLE_DEVICES": "3"}, ("3",)),
        ({"ZE_AFFINITY_MASK": "0.0,0.1"}, ("0.0", "0.1")),
    ],
)
def test_gpus_that_the_environment_grants(environment, gpus):
    assert visible_gpus(environment) == gpus
