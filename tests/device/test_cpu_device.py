"""memfd regions, memory and core limits, shares as threads."""

import fcntl
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from muxd.device import cgroup, cpu
from muxd.errors import ConfigError, OutOfMemory
from muxd.kernels.linear import packs
from muxd.worker.mapped import DTYPES


@pytest.mark.usefixtures("no_descriptor_leak")
def test_a_region_is_shared_sealed_and_survives_its_descriptor() -> None:
    region = cpu.Cpu().allocate(1 << 20, "weights")
    first, second = region.array(), region.array()
    first[12345] = 7
    assert second[12345] == 7
    assert fcntl.fcntl(region.fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    with pytest.raises(PermissionError):
        os.ftruncate(region.fd, 4096)
    region.close()
    region.close()
    part = first[12340:].view(np.int8)
    del first, second
    assert part[5] == 7  # what numpy made of the mapping keeps it


def test_a_writer_is_the_mapping_and_keeps_to_the_region() -> None:
    region = cpu.Cpu().allocate(5000, "weights")
    with region.writer() as writer:
        writer.window(10, 20)[:] = 3
        writer.window(4999, 1)[:] = 4
        for offset, nbytes in ((4999, 2), (-1, 1), (0, -1)):
            with pytest.raises(ValueError, match="do not lie in a region of 5000"):
                writer.window(offset, nbytes)
    expected = bytes(10) + bytes([3]) * 20 + bytes(4969) + bytes([4])
    assert region.array().tobytes() == expected
    region.close()


def test_promised_memory_counts_before_it_is_touched() -> None:
    """Two regions that fit alone but not together: the second is refused although no page exists yet."""
    device = cpu.Cpu()
    free, _ = cpu.available_memory()
    first = device.allocate(int(free * 0.7), "pool")
    try:
        with pytest.raises(ConfigError, match=r"weights: .* lower pool\.bytes or serve fewer models"):
            device.allocate(int(free * 0.7), "weights")
    finally:
        first.close()
    second = device.allocate(int(free * 0.7), "weights")
    assert second.untouched == second.nbytes
    second.close()


def test_touched_pages_are_not_counted_twice() -> None:
    region = cpu.Cpu().allocate(1 << 20, "pool")
    region.array()[: 1 << 19] = 1
    assert region.untouched == 1 << 19
    region.close()


def test_nothing_is_not_an_allocation() -> None:
    with pytest.raises(ConfigError, match="cannot allocate 0 bytes"):
        cpu.Cpu().allocate(0, "weights")


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_cgroup_v2_limits_of_parents_count(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc": "0::/kube/pod\n",
            "kube/memory.max": "1000000\n",
            "kube/memory.current": "400000\n",
            "kube/memory.stat": "anon 1\ninactive_file 50000\n",
            "kube/pod/memory.max": "max\n",
            "kube/pod/memory.current": "300000\n",
            "kube/cpu.max": "max 100000\n",
            "kube/pod/cpu.max": "250000 100000\n",
        },
    )
    assert cgroup.memory_left(tmp_path / "proc", tmp_path) == 650000
    assert cgroup.cpu_quota(tmp_path / "proc", tmp_path) == 2.5


def test_cgroup_v1_in_a_container_whose_path_is_the_hosts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
            "memory/memory.limit_in_bytes": "1000\n",
            "memory/memory.usage_in_bytes": "1500\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "150000\n",
            "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cgroup.memory_left(tmp_path / "proc", tmp_path) == 0
    assert cgroup.cpu_quota(tmp_path / "proc", tmp_path) == 1.5


def test_no_cgroup_limit_is_no_limit(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc": "4:memory:/\n1:cpu:/\n",
            "memory/memory.limit_in_bytes": f"{2**63 - 4096}\n",
            "memory/memory.usage_in_bytes": "15\n",
            "cpu/cpu.cfs_quota_us": "-1\n",
            "cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert cgroup.memory_left(tmp_path / "proc", tmp_path) is None
    assert cgroup.cpu_quota(tmp_path / "proc", tmp_path) is None


def test_available_cores_follow_the_affinity() -> None:
    one = min(os.sched_getaffinity(0))
    code = (
        f"import os; os.sched_setaffinity(0, {{{one}}}); from muxd.device import cpu; print(cpu.Cpu().cores)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("cores", "expected"),
    [(1, (100,)), (2, (50, 100)), (3, (33, 66, 100)), (4, (25, 50, 75, 100)), (13, (8, 16, 24, 31))],
)
def test_rungs(cores: int, expected: tuple[int, ...]) -> None:
    assert cpu.rungs(cores)[: len(expected)] == expected
    assert cpu.Cpu(cores).rungs == cpu.rungs(cores)


@given(cores=st.integers(1, 256))
def test_threads_grow_exactly_at_the_rungs(cores: int) -> None:
    rungs = cpu.rungs(cores)
    assert rungs[-1] == 100
    assert cpu.threads(100, cores) == cores
    assert all(cpu.threads(low, cores) < cpu.threads(high, cores) for low, high in pairwise(rungs))
    between = [share for share in range(2, 101) if share not in rungs]
    assert all(cpu.threads(share, cores) == cpu.threads(share - 1, cores) for share in between)


@given(cores=st.integers(1, 256), data=st.data())
def test_rungs_within_100_percent_never_mean_more_threads_than_cores(cores: int, data: st.DataObject) -> None:
    left, used = 100, 0
    while fitting := [rung for rung in cpu.rungs(cores) if rung <= left]:
        rung = data.draw(st.sampled_from(fitting))
        left, used = left - rung, used + cpu.threads(rung, cores)
    assert used <= cores


def test_single_threads_are_the_worst_case_and_fit() -> None:
    for cores in range(1, 257):
        lowest = cpu.rungs(cores)[0]
        assert 100 // lowest * cpu.threads(lowest, cores) <= cores


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 8, 12, 16])
def test_equal_parts_in_whole_percents_get_their_whole_threads(cores: int) -> None:
    for models in range(1, cores + 1):
        if cores % models == 0:
            assert cpu.threads(100 // models, cores) == cores // models


def test_the_worker_environment_reaches_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT")  # which the tests have, and a daemon's would say for its workers
    code = "import torch, os; print(torch.get_num_threads(), os.environ['GOMP_SPINCOUNT'])"
    env = {**os.environ, **cpu.worker_env(1)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["1", "300000"]
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    assert cpu.worker_env(1)["GOMP_SPINCOUNT"] == "1000"


def test_copies_that_workers_make_of_weights_count_as_long_as_the_weights_are_there() -> None:
    device = cpu.Cpu(limit=10 << 20)
    weights = device.allocate(3 << 20, "weights", 6 << 20)
    with pytest.raises(OutOfMemory, match=r"1048576 left of device\.memory"):
        device.allocate(2 << 20, "pool")
    weights.close()
    device.allocate(9 << 20, "pool").close()
    free, _ = cpu.available_memory()
    with pytest.raises(OutOfMemory, match=r"weights: 1 MiB and [0-9,]+ MiB for copies in workers wanted"):
        cpu.Cpu().allocate(1 << 20, "weights", free)


def test_what_counts_as_copied_is_what_workers_copy() -> None:
    for dtype in ("bfloat16", "float16", "float32"):
        assert cpu.Cpu().copies(dtype) == packs(DTYPES[dtype])
