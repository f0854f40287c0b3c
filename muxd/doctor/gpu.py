"""Probes of a GPU by the driver alone: is it there, is it sound, does memory travel between processes."""

import os
import time

from muxd.device.cuda import Cuda
from muxd.device.driver import MAJOR, MIN_CUDA, MINOR, CudaError, CudaUnusable, Driver, cuda_version
from muxd.device.nvml import Nvml, NvmlMissing
from muxd.device.reservation import CudaReservation, MappingError
from muxd.device.upload import UploadError
from muxd.doctor.finding import Finding
from muxd.doctor.peer import Ask, Peer, PeerFailed
from muxd.errors import ConfigError, MuxdError

_SIZE = 64 << 20
_NO_GPU = "models are served on the CPU"


def driver() -> list[Finding]:
    """The driver, and each GPU as a device muxd can use."""
    try:
        cuda = Driver()
        count = cuda.count()
    except CudaError as error:
        least = cuda_version(MIN_CUDA)
        todo = f"install an NVIDIA driver for CUDA {least} or newer, and let this process see it"
        return [Finding("driver", "missing", error.message, _NO_GPU, todo, needed=True)]
    found = [Finding("driver", "ok", f"CUDA {cuda_version(cuda.version)}", f"{count} GPU(s) can be used")]
    for index in range(count):
        capability = f"{cuda.attribute(MAJOR, index)}.{cuda.attribute(MINOR, index)}"
        kind = f"{cuda.device_name(index)}, compute capability {capability}"
        try:
            device = Cuda(index, driver=cuda)
        except CudaUnusable as error:
            found.append(Finding(f"gpu {index}", "missing", f"{kind}: {error.message}", _NO_GPU, needed=True))
            continue
        whole = cuda.total_memory(index)
        numbers = {
            "sms": float(device.cores),
            "bytes": float(whole),
            "granularity": float(device.granularity),
        }
        said = f"{kind}, {device.cores} SMs, {whole / 2**30:.1f} GiB"
        found.append(Finding(f"gpu {index}", "ok", said, "models can be served on it", numbers=numbers))
    return found


def health() -> list[Finding]:
    """What NVML says about each device."""
    try:
        with Nvml() as nvml:
            readings = nvml.read()
    except NvmlMissing as error:
        without = "load, temperature and errors of the GPU are not shown"
        return [Finding("gpu health", "degraded", error.message, without, "make libnvidia-ml.so.1 visible")]
    found = []
    for one in readings:
        text = one.health if one.health != "ok" else "sound"
        if one.temperature is not None:
            text += f", {one.temperature} °C"
        if one.power is not None:
            text += f", {one.power:.0f} W"
        if not one.lost:
            text += f", {one.memory_used / 2**30:.1f} of {one.memory_total / 2**30:.1f} GiB taken"
        numbers = {
            key: float(value)
            for key, value in (
                ("temperature_celsius", one.temperature), ("power_watts", one.power),
                ("memory_used_bytes", one.memory_used), ("utilization_percent", one.utilization),
            )
            if value is not None
        }  # fmt: skip
        bad = one.health != "ok"
        meaning = "it is slower than it could be, or about to fail" if bad else "nothing holds it back"
        todo = "see `nvidia-smi -q -d PERFORMANCE,ECC,ROW_REMAPPER`" if bad else ""
        found.append(
            Finding(
                f"gpu {one.index} health", "degraded" if bad else "ok", text, meaning, todo, numbers=numbers
            )
        )
    return found


def export() -> list[Finding]:
    """The daemon's way: allocate without a context, export, let another process map, read and write."""
    name, without = "memory export", "workers could not map pool and weights"
    try:
        cuda = Cuda()
        began = time.perf_counter()
        region = cuda.allocate(_SIZE, "pool")
        took = time.perf_counter() - began
        needs_context = _has_context(cuda.driver)
        with region.writer() as writer:
            for start in range(0, _SIZE, _SIZE // 2):
                writer.window(start, _SIZE // 2)[:] = 41
        with Peer("importer") as peer:
            answer, _ = peer.ask(Ask(_SIZE, 42), [region.fd])
        seen = (answer.numbers["first"], answer.numbers["last"])
        with cuda.driver.context():
            space = CudaReservation(cuda.driver, _SIZE)
            space.map(0, region.fd, _SIZE)
            back = cuda.driver.to_host(space.address + _SIZE - 1, 1)[0]
            space.close()
        region.close()
    except (MuxdError, OSError) as error:
        todo = "muxd needs the driver's virtual memory calls with POSIX descriptors; not in every container"
        return [Finding(name, "missing", str(error), without, todo, needed=True)]
    if seen != (41, 41) or back != 42:
        found = f"the importer read {seen} instead of 41, its writes were seen as {back} instead of 42"
        return [Finding(name, "missing", found, without, needed=True)]
    numbers = {"create_and_export_seconds": took, "map_seconds": answer.numbers["map_seconds"]}
    if needs_context:
        meaning = (
            "the daemon holds a context; a fault of a worker without MPS cannot reach it, but it costs memory"
        )
        return [Finding(name, "degraded", "works, but only in a context", meaning, numbers=numbers)]
    meaning = "one copy of weights and one pool for all workers; the daemon needs no context"
    return [
        Finding(name, "ok", f"{_SIZE >> 20} MiB written and read across processes", meaning, numbers=numbers)
    ]


def survival() -> list[Finding]:
    """Kill whoever made the memory; whoever holds the descriptor reads on."""
    name = "exporter's death"
    try:
        with Peer("exporter") as maker:
            _, (fd,) = maker.ask(Ask(32 << 20, 77))
            maker.kill()
        with Peer("importer") as peer:
            answer, _ = peer.ask(Ask(32 << 20, 1), [fd])
        os.close(fd)
    except (PeerFailed, CudaError, MappingError, UploadError, ConfigError) as error:
        meaning = "workers cannot outlive the process that made their memory; they end with the daemon anyway"
        return [Finding(name, "degraded", str(error), meaning)]
    seen = (answer.numbers["first"], answer.numbers["last"])
    if seen != (77, 77):
        return [
            Finding(name, "degraded", f"the memory had lost its contents: {seen}", "a crash loses the pool")
        ]
    return [
        Finding(name, "ok", "memory is intact", "who holds the descriptor keeps the memory, whoever made it")
    ]


def _has_context(driver: Driver) -> bool:
    try:
        driver.synchronize()
    except CudaError:
        return False
    return True
