"""Device memory that travels as a descriptor: written, read, outliving its maker, given back in the end."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from support.gpu_host import Host
from support.gpu_process import GpuProcess

from muxd.device.cuda import Cuda
from muxd.device.driver import CudaError
from muxd.device.nvml import Nvml
from muxd.device.upload import HALF
from muxd.doctor.peer import Ask, Peer

MIB = 1 << 20


def test_allocated_without_a_context_filled_and_mapped_by_two(host: Host) -> None:
    cuda = Cuda()
    data = np.random.default_rng(2).integers(0, 256, HALF + 3 * MIB, dtype=np.uint8)
    region = cuda.allocate(len(data), "weights")
    with pytest.raises(CudaError):  # no context is current, and none was needed
        cuda.driver.synchronize()
    with region.writer() as writer:
        for start in range(0, len(data), 5 * MIB):
            piece = data[start : start + 5 * MIB]
            writer.window(start, len(piece))[:] = piece
    with GpuProcess() as one, GpuProcess() as other:
        for process in (one, other):
            assert process.ask(f"map {len(data)}", region.fd) == "mapped 1"
        for offset in (0, 5 * MIB - 1, HALF, len(data) - 1):
            assert one.ask(f"byte {offset}") == other.ask(f"byte {offset}") == str(data[offset])
        assert one.ask("fill 200") == "filled"
        assert other.ask(f"byte {len(data) - 1}") == "200"
    region.close()


def test_memory_outlives_its_maker_and_its_descriptor(host: Host) -> None:
    """The exporter is killed; then our descriptor closes and only the mapping is left."""
    with Peer("exporter") as maker:
        _, (fd,) = maker.ask(Ask(16 * MIB, 77))
        maker.kill()
    with GpuProcess() as process:
        process.ask(f"map {16 * MIB}", fd)
        os.close(fd)
        assert process.ask(f"byte {16 * MIB - 1}") == "77"
        assert process.ask("fill 3") == "filled"
        assert process.ask("byte 0") == "3"


def test_the_kernels_compute_what_they_say(host: Host) -> None:
    cuda = Cuda()
    size = 4 * MIB
    region = cuda.allocate(size, "pool")
    data = np.random.default_rng(3).integers(0, 2**32, size // 8, dtype=np.uint32)
    with region.writer() as writer:
        writer.window(0, size // 2)[:] = data.view(np.uint8)
    with GpuProcess() as process:
        process.ask(f"map {size}", region.fd)
        total, same, covered = map(int, process.ask("sums").split())
    assert covered == size // 2
    assert total == np.bitwise_xor.reduce(data)
    assert same == 1
    region.close()


def test_a_read_only_mapping_is_one_or_says_that_it_is_not(host: Host) -> None:
    cuda = Cuda()
    region = cuda.allocate(2 * MIB, "weights")
    with region.writer() as writer:
        writer.window(0, MIB)[:] = 9
    code = """
import socket, sys
from muxd.device.driver import CudaError, Driver
from muxd.device.reservation import CudaReservation
driver = Driver()
driver.retain()
space = CudaReservation(driver, 2 << 20)
writable = space.map(0, int(sys.argv[1]), 2 << 20, writable=False)
assert driver.to_host(space.address, 1)[0] == 9
if not writable:
    try:
        driver.fill_bytes(space.address, 1, 4096)
        driver.synchronize()
        print("a read-only mapping was written")
    except CudaError:
        pass
print("done")
"""
    if not host.real:
        code = code.replace("if not writable:", "if False:")  # there it is a segmentation fault
    done = subprocess.run(
        [sys.executable, "-c", code, str(region.fd)],
        pass_fds=[region.fd], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.split() == ["done"], done.stdout + done.stderr
    with GpuProcess() as process:
        process.ask(f"map {2 * MIB}", region.fd)
        assert process.ask("byte 0") == "9"
    region.close()


@pytest.mark.parametrize("host", [pytest.param("real", marks=pytest.mark.gpu)], indirect=True)
def test_all_memory_comes_back(host: Host) -> None:
    """Regions made, filled, mapped elsewhere and closed, many times over: NVML sees what was there before."""
    cuda, size = Cuda(), 512 * MIB

    def round_trip() -> None:
        region = cuda.allocate(size, "pool")
        with region.writer() as writer:
            writer.window(0, MIB)[:] = 1
        with GpuProcess() as process:
            process.ask(f"map {size}", region.fd)
            process.ask("byte 0")
        region.close()

    round_trip()
    with Nvml() as nvml:
        before = nvml.read()[0].memory_used
        for _ in range(5):
            round_trip()
        after = _settled(lambda: nvml.read()[0].memory_used, before + 64 * MIB)
    assert after <= before + 64 * MIB, f"{(after - before) / MIB:.0f} MiB more than before"


def _settled(read: Callable[[], int], most: int) -> int:
    """The driver frees a dead process's memory a little later; nothing tells when."""
    end, pause = time.monotonic() + 20, threading.Event()
    while (value := read()) > most and time.monotonic() < end:
        pause.wait(0.2)
    return value
