"""A worker's view: torch tensors over memory that comes and goes, graphs that stay true, the whole doctor."""

import os
import subprocess
import sys

import numpy as np
import pytest
from support.gpu_host import Host

from muxd.device.choose import open_device
from muxd.device.cuda import Cuda
from muxd.doctor.run import examine
from muxd.pool.arena import Arena

PIECE = 4 << 20
BLOCK = 8192

WORKER = """
import sys
import torch
from muxd.device.cuda_tensor import bytes_at
from muxd.device.driver import Driver
from muxd.device.reservation import CudaReservation
real, size, fds = sys.argv[1] == "1", int(sys.argv[2]), [int(fd) for fd in sys.argv[3:]]
if real:
    torch.cuda.init()
driver = Driver()
driver.retain()
space = CudaReservation(driver, 4 * size)
for index, fd in enumerate(fds):
    space.map(index * size, fd, size)
pool = bytes_at(space.address, 4 * size, 0 if real else None)
assert pool.data_ptr() == space.address and pool.is_cuda == real
pool[: 3 * size].zero_()
values = pool.view(torch.bfloat16).view(4, -1)
values[0] = 1.5

def step():
    values[1].copy_(values[0]).mul_(2)

step()
assert values[1].float().mean().item() == 3.0
if real:
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        step()
    step = graph.replay
values[0] = 4.0
step()
assert values[1].float().mean().item() == 8.0
space.unmap(2 * size)            # other memory leaves and comes back: the graph's addresses are not touched
space.map(2 * size, fds[2], size)
values[0] = 5.0
step()
assert values[1].float().mean().item() == 10.0
space.unmap(0)                   # memory is replaced at its addresses: the graph reads the new one
space.map(0, fds[2], size)
values[0] = 7.0
step()
assert values[1].float().mean().item() == 14.0
print("done")
"""


def test_tensors_and_graphs_over_lent_memory(host: Host) -> None:
    arena = Arena(Cuda(), PIECE, BLOCK, 3 * PIECE)
    extents = [arena.lend(PIECE) for _ in range(2)]
    fds = [arena.fds[0], *(extent.region.pieces[0].fd for extent in extents if extent is not None)]
    assert [extent.offset for extent in arena.extents] == [PIECE, 2 * PIECE]
    assert arena.reach == 4 * PIECE
    done = subprocess.run(
        [sys.executable, "-c", WORKER, str(int(host.real)), str(PIECE), *map(str, fds)],
        pass_fds=fds, capture_output=True, text=True, timeout=240, env=os.environ,
    )  # fmt: skip
    assert done.stdout.split() == ["done"], done.stderr
    arena.close()


REAL = pytest.mark.parametrize("host", [pytest.param("real", marks=pytest.mark.gpu)], indirect=True)

MAPPED = """
import sys
import torch
from muxd.device.cuda_tensor import DeviceMemory
memory = DeviceMemory(0)
pool = memory.tensor(int(sys.argv[1]), 3_000_000)
weights = memory.tensor(int(sys.argv[2]), 1_000_000, writable=False)
assert pool.is_cuda and pool.numel() == 3_000_000 and weights[7].item() == 7
matrix = weights[:8192].view(torch.bfloat16).view(64, 64)
unit = torch.eye(64, device="cuda", dtype=torch.bfloat16)
pool[:8192].view(torch.bfloat16).view(64, 64).copy_(matrix @ unit)
assert torch.equal(pool[:8192], weights[:8192])
torch.cuda.synchronize()
print(memory.view().sms, int(memory.view().mps))
"""


@REAL
def test_a_worker_maps_what_the_daemon_made(host: Host) -> None:
    """As a worker would: under MPS where there is any, torch first, pool writable, weights not."""
    device = open_device("cuda:0")
    try:
        (pool,) = device.allocate(3_000_000, "pool").pieces
        (weights,) = device.allocate(1_000_000, "weights").pieces
        with weights.writer() as writer:
            writer.window(0, 1_000_000)[:] = np.arange(1_000_000, dtype=np.uint64).astype(np.uint8) % 60
        done = subprocess.run(
            [sys.executable, "-c", MAPPED, str(pool.fd), str(weights.fd)],
            pass_fds=[pool.fd, weights.fd], capture_output=True, text=True, timeout=240,
            env={**os.environ, **device.worker_env()},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        sms, under_mps = map(int, done.stdout.split())
        assert sms == device.cores
        assert under_mps == (device.rungs != (100,))
        pool.close()
        weights.close()
    finally:
        device.close()


@REAL
def test_the_doctor_finds_what_a_gpu_host_needs(host: Host) -> None:
    """Nothing needed is missing; memory and matrix rates were measured. What is degraded is printed."""
    findings = list(examine(gpu=True))
    for finding in findings:
        print(f"{finding.state}: {finding.check}: {finding.found}")
    assert [finding for finding in findings if finding.fatal] == []
    numbers = {name: value for finding in findings for name, value in finding.numbers.items()}
    assert numbers["read_bytes_per_second"] > 0
    assert numbers["copy_bytes_per_second"] > 0
    assert numbers["bf16_flops_per_second"] > 0
