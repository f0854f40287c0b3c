"""One NVIDIA GPU as a device: exported physical memory, SMs as cores. For the daemon; no torch, no context.

The daemon calls cuInit and allocates, and that is all: what it keeps are file descriptors. Without a context
it is no MPS client, a worker's fault cannot reach it, and it costs no device memory. Mapping is the workers'
(``device.reservation``), filling a process's of its own (``device.upload``).
"""

import contextlib
import logging
import os

from muxd.device.base import ClientView, Device, Piece, Region, RegionPlace, Writer, seat_alone
from muxd.device.budget import Budget
from muxd.device.driver import (
    COMPUTE_MODE,
    EXCLUSIVE_PROCESS,
    FD_SUPPORTED,
    INVALID_CONTEXT,
    OFF_MPS,
    OUT_OF_MEMORY,
    SM_COUNT,
    VMM_SUPPORTED,
    CudaError,
    CudaUnusable,
    Driver,
)
from muxd.device.green import PARTS, Unsplittable, quarters
from muxd.device.mps import Mps, MpsUnavailable
from muxd.device.writing import writer
from muxd.errors import ConfigError, OutOfMemory
from muxd.messages import Dtype

_log = logging.getLogger("muxd.device")

# Of cuBLAS, for each stream that a worker has computed on: its default but on Hopper, where it is 32 MiB.
# ":KiB:count" (cuBLAS, cublasSetWorkspace); torch reads it and makes the workspaces (CublasHandlePool.cpp).
WORKSPACE = ((4096, 2), (16, 8))
WORKSPACE_BYTES = sum(1024 * kib * count for kib, count in WORKSPACE)

CAPS = tuple(range(1, 101))  # percent that a worker may be spawned with; the hardware rounds down


class CudaRegion:
    """Physical device memory, held by its descriptor alone."""

    def __init__(self, fd: int, nbytes: int, device: int, env: dict[str, str]):
        self.nbytes = nbytes
        self._fd, self._device, self._env = fd, device, env

    @property
    def fd(self) -> int:
        """Descriptor to pass to workers. Raises ValueError after ``close``."""
        if self._fd < 0:
            raise ValueError("region is closed")
        return self._fd

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """See ``device.base.Region.pieces``."""
        return (self,)

    @property
    def closed(self) -> bool:
        """See ``device.base.Region.closed``."""
        return self._fd < 0

    @property
    def place(self) -> RegionPlace:
        """See ``device.base.Region.place``."""
        return RegionPlace(self.nbytes, self._device, self._env)

    def writer(self) -> Writer:
        """See ``device.base.Region.writer``; windows of at most ``upload.HALF`` bytes."""
        return writer(self.place, self.fd)

    def close(self) -> None:
        """Close the descriptor; mappings stay valid. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Cuda:
    """GPU ``index`` of those visible. Raises CudaUnusable when it cannot serve.

    ``mps``: a control daemon that runs, else models take turns on the whole device. With ``mps`` a worker
    either has a cap for life (``caps``) or changes its part of the SMs with every batch, by green contexts;
    never both: under a cap a green context may use more SMs than it was given (cuda.h 13.0).
    ``limit``: bytes of ``device.memory``; 0: what the GPU has.
    """

    cpus: tuple[int, ...] = ()  # the host's part of a worker goes where it likes

    def __init__(
        self,
        index: int = 0,
        *,
        mps: Mps | None = None,
        caps: bool = False,
        driver: Driver | None = None,
        limit: int = 0,
    ):
        # Before cuInit, and for good: as an MPS client the daemon would end with the first faulty worker.
        os.environ.update(OFF_MPS)
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML's order, and the workers'
        self.driver = driver or Driver()
        self.index, self.mps, self._caps = index, mps, caps
        self._keep_context = False
        self._budget = Budget(limit)
        self._check()
        self.name = f"cuda:{index}"
        self.kind = self.driver.device_name(index)
        self.cores = self.driver.attribute(SM_COUNT, index)
        self.granularity = self.driver.granularity(index)
        self._least_part = 0  # SMs; 0: it has no parts
        self.rungs = self._rungs()

    @property
    def members(self) -> tuple[Device, ...]:
        """See ``device.base.Device.members``."""
        return (self,)

    def seat(self, ranks: int) -> Device:
        """See ``device.base.Device.seat``."""
        return seat_alone(self, ranks)

    @property
    def memory(self) -> int:
        """See ``device.base.Device.memory``."""
        return self._budget.limit or self.driver.total_memory(self.index)

    @property
    def caps(self) -> bool:
        """See ``device.base.Device.caps``."""
        return self.mps is not None and self._caps

    @property
    def parts(self) -> int:
        """See ``device.base.Device.parts``. None without MPS, and none beside caps."""
        return 0 if self.mps is None or self._caps else PARTS

    def worker_env(self, cap: int = 0) -> dict[str, str]:
        """See ``device.base.Device.worker_env``. A cap without MPS has no effect and is left out."""
        workspace = "".join(f":{kib}:{count}" for kib, count in WORKSPACE)
        common = {
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "CUBLAS_WORKSPACE_CONFIG": workspace,
            "CUDA_MODULE_LOADING": "LAZY",  # only kernels that are launched take memory of the device
        }
        if self.mps is None:
            return {**common, **OFF_MPS}
        if self._least_part:
            common |= collectives(self._least_part)
        return {**common, **self.mps.client_env(cap if self._caps else 0)}

    def copies(self, dtype: Dtype) -> bool:
        """No: kernels read weights where they are."""
        return False

    def allocate(self, nbytes: int, label: str, beside: int = 0) -> CudaRegion:
        """See ``device.base.Device.allocate``. Whole pages of ``granularity`` are taken."""
        if nbytes < 1:
            raise ConfigError(f"{label}: cannot allocate {nbytes} bytes")
        size = round_up(nbytes, self.granularity)
        self._budget.admit(size, label)
        try:
            handle = self._create(size)
        except CudaError as error:
            if error.result != OUT_OF_MEMORY:
                raise
            raise OutOfMemory(self._too_little(size, label)) from None
        try:
            fd = self.driver.export(handle)
        finally:
            # The descriptor counts as a reference (cuda.h, cuMemRelease): the memory lives on.
            self.driver.release(handle)
        region = CudaRegion(fd, nbytes, self.index, self._upload_env())
        self._budget.keep(region)
        return region

    def attached(self, pid: int, view: ClientView, cap: int = 0) -> str:
        """See ``device.base.Device.attached``."""
        if self.mps is None:
            return ""
        try:
            return self.mps.confirm(pid, view, cap if self._caps else 0, self.cores)
        except MpsUnavailable as error:
            return f"process {pid} cannot be confirmed as a client of MPS: {error}"

    def end_work(self, pid: int) -> None:
        """See ``device.base.Device.end_work``."""
        if self.mps is not None and not self.mps.terminate(pid):
            _log.warning("%s: the work of process %d may still be running when it is killed", self.name, pid)

    def faulted(self) -> bool:
        """See ``device.base.Device.faulted``. Without MPS a fault stays in its process."""
        return self.mps is not None and self.mps.health().state == "fault"

    def close(self) -> None:
        """End the MPS daemon, unless another muxd's workers use it."""
        if self.mps is None:
            return
        with contextlib.suppress(MpsUnavailable):
            if not self.mps.clients():
                self.mps.stop()

    def _create(self, size: int) -> int:
        """cuMemCreate names no context among its errors; should a driver want one, it gets one, once."""
        try:
            return self.driver.create(size, self.index)
        except CudaError as error:
            if error.result != INVALID_CONTEXT or self._keep_context:
                raise
        self._keep_context = True
        self.driver.retain(self.index)
        _log.warning("%s: this driver allocates only in a context; the daemon holds one now", self.name)
        return self.driver.create(size, self.index)

    @property
    def room(self) -> int:
        """See ``device.base.Device.room``."""
        return max(0, self.memory - self._budget.held)

    @property
    def shared(self) -> None:
        """What sleeps takes none of a GPU's memory."""

    def shelve(self, region: Region) -> bool:
        """Not here: the weights of a model that sleeps are read from its files again."""
        return False

    def unshelve(self, region: Region, beside: int = 0) -> None:
        """Nothing is shelved here."""
        raise ValueError("nothing is shelved on a GPU")

    def _check(self) -> None:
        count = self.driver.count()
        if self.index >= count:
            raise CudaUnusable(f"there is no GPU {self.index}: {count} visible (CUDA_VISIBLE_DEVICES)")
        for number, what in ((VMM_SUPPORTED, "map"), (FD_SUPPORTED, "export")):
            if not self.driver.attribute(number, self.index):
                name = self.driver.device_name(self.index)
                raise CudaUnusable(f"GPU {self.index} ({name}) cannot {what} memory for other processes")

    def _rungs(self) -> tuple[int, ...]:
        if self.mps is None:
            return (100,)
        if self._caps:
            return CAPS
        try:
            found = quarters(self.driver, self.index)
            self._least_part = min(found.sms)
            return found.rungs
        except (Unsplittable, CudaError) as error:
            _log.warning("%s: no green contexts (%s); workers get fixed caps", self.name, error)
            self._caps = True
            return CAPS

    def _upload_env(self) -> dict[str, str]:
        exclusive = self.driver.attribute(COMPUTE_MODE, self.index) == EXCLUSIVE_PROCESS
        return self.mps.client_env() if exclusive and self.mps is not None else dict(OFF_MPS)

    def _too_little(self, size: int, label: str) -> str:
        more = "" if label == "pool" else " or serve fewer models"
        whole = self.driver.total_memory(self.index)
        return (
            f"not enough memory for {label} on GPU {self.index}: {size / 2**20:,.0f} MiB wanted of "
            f"{whole / 2**20:,.0f} MiB in all, less what is taken: lower pool.bytes{more}"
        )


def collectives(sms: int) -> dict[str, str]:
    """What holds NCCL's kernels to ``sms`` SMs. Their blocks wait for those of the other ranks, so all of
    them must find a place at once in the smallest part that a batch may have. NCCL reads it when its first
    communicator is made (NCCL user guide, environment variables: NCCL_MAX_CTAS, since 2.17, at most 64)."""
    return {"NCCL_MIN_CTAS": "1", "NCCL_MAX_CTAS": str(min(sms, 64))}


def round_up(nbytes: int, step: int) -> int:
    """The least multiple of ``step`` that is not below ``nbytes``."""
    return -(-nbytes // step) * step
