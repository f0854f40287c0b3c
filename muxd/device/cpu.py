"""The CPU as a device: memory is memfd, cores are threads, shares are whole numbers of threads.

Used by the daemon (regions, environments) and by the worker's runner (``threads``). No torch here.
"""

import fcntl
import mmap
import os
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

from muxd.device import cgroup
from muxd.device.base import ClientView, Device, Piece, Region, RegionPlace, Writer, seat_alone
from muxd.device.budget import Budget
from muxd.device.writing import mapped, writer
from muxd.errors import ConfigError, OutOfMemory
from muxd.messages import Dtype

_PACKING = frozenset({"avx512bw", "avx512vl", "avx512dq"})  # with which torch lets oneDNN compute bfloat16


class CpuRegion:
    """An anonymous, sealed memfd: pages are zero until touched, and it can neither shrink nor grow."""

    def __init__(self, nbytes: int, label: str):
        self.nbytes = nbytes
        self._fd = os.memfd_create(f"muxd-{label}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._fd, nbytes)
            # A file that shrinks under a mapping is SIGBUS in every worker: rule it out.
            fcntl.fcntl(self._fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        except OSError:
            os.close(self._fd)
            raise

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
    def untouched(self) -> int:
        """Bytes promised but not yet backed by pages."""
        return max(0, self.nbytes - os.fstat(self.fd).st_blocks * 512)

    def array(self) -> NDArray[np.uint8]:
        """A mapping; see ``writing.mapped``."""
        return mapped(self.fd, self.nbytes)

    @property
    def place(self) -> RegionPlace:
        """See ``device.base.Region.place``."""
        return RegionPlace(self.nbytes)

    def writer(self) -> Writer:
        """See ``device.base.Region.writer``; its windows are the mapping itself."""
        return writer(self.place, self.fd)

    def close(self) -> None:
        """Close the descriptor; mappings stay valid. May be called twice. Where it was the last hold on the
        memory the kernel takes that back meanwhile, which lasts with many pages: call it in a thread."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class Cpu:
    """This machine's CPU as far as the process may use it, or only ``cpus`` of it.

    ``limit``: bytes of ``device.memory``; 0: what the machine has. Raises ConfigError for a CPU that this
    process may not use.
    """

    name = "cpu"
    kind = "CPU"
    _regions: ClassVar[WeakSet[CpuRegion]] = WeakSet()  # of all devices: they share the machine's memory
    granularity = mmap.PAGESIZE

    def __init__(self, cores: int | None = None, *, cpus: Sequence[int] = (), limit: int = 0):
        self.cpus = tuple(cpus)
        if missing := set(cpus) - os.sched_getaffinity(0):
            there = ", ".join(map(str, sorted(os.sched_getaffinity(0))))
            raise ConfigError(f"device.cores: muxd may not use CPU {min(missing)}, only {there}")
        self.cores = cores or len(self.cpus) or available_cores()
        self.rungs = rungs(self.cores)
        self._budget = Budget(limit)

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
        return self._budget.limit or available_memory()[0] + self._budget.held

    def worker_env(self, cap: int = 0) -> dict[str, str]:
        """See ``worker_env`` below. ``cap`` is not needed: a worker's threads follow each batch's share."""
        return worker_env(self.cores)

    def copies(self, dtype: Dtype) -> bool:
        """bfloat16, where oneDNN multiplies it: then ``kernels.linear`` packs."""
        return dtype == "bfloat16" and flags() >= _PACKING

    def allocate(self, nbytes: int, label: str, beside: int = 0) -> CpuRegion:
        """See ``device.base.Device.allocate``. Memory promised before but not yet touched counts as used."""
        if nbytes < 1:
            raise ConfigError(f"{label}: cannot allocate {nbytes} bytes")
        self._budget.admit(nbytes + beside, label)
        promised = sum(region.untouched for region in self._regions if not region.closed)
        free, source = available_memory()
        if nbytes + beside + promised > free:
            more = "" if label == "pool" else " or serve fewer models"
            copies = f" and {_mib(beside)} for copies in workers" if beside else ""
            raise OutOfMemory(
                f"not enough memory for {label}: {_mib(nbytes)}{copies} wanted, "
                f"{_mib(max(0, free - promised))} left ({source}, {_mib(promised)} of it promised already): "
                f"lower pool.bytes{more}",
                shared=True,
            )
        region = CpuRegion(nbytes, label)
        self._regions.add(region)
        self._budget.keep(region, beside)
        return region

    @property
    def room(self) -> int:
        """See ``device.base.Device.room``."""
        left = self._budget.left
        return self.shared if left is None else max(0, min(self.shared, left))

    @property
    def shared(self) -> int:
        """See ``device.base.Device.shared``."""
        promised = sum(region.untouched for region in self._regions if not region.closed)
        return max(0, available_memory()[0] - promised)

    def shelve(self, region: Region) -> bool:
        """See ``device.base.Device.shelve``: the device's memory is the host's, only ``limit`` differs."""
        self._budget.drop(region)
        return True

    def unshelve(self, region: Region, beside: int = 0) -> None:
        """See ``device.base.Device.unshelve``."""
        self._budget.admit(region.nbytes + beside, "weights")
        self._budget.keep(region, beside)

    def attached(self, pid: int, view: ClientView, cap: int = 0) -> str:
        """Nothing to check: threads follow the command."""
        return ""

    @property
    def caps(self) -> bool:
        """No: threads follow each command."""
        return False

    @property
    def parts(self) -> int:
        """None: a share is a number of threads."""
        return 0

    def end_work(self, pid: int) -> None:
        """Nothing to end: a killed process leaves its cores."""

    def faulted(self) -> bool:
        """Never: processes fail one by one."""
        return False

    def close(self) -> None:
        """Nothing was started."""


@cache
def flags() -> frozenset[str]:
    """What the processor can do, as Linux names it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    found = (line.partition(":")[2].split() for line in lines if line.startswith("flags"))
    return frozenset(next(found, ()))


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> tuple[int, str]:
    """Bytes that can be used without swapping, and who says so."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    machine = int(lines["MemAvailable"].split()[0]) * 1024
    group = cgroup.memory_left()
    if group is not None and group < machine:
        return group, "memory limit of the control group"
    return machine, "MemAvailable of the machine"


def available_cores() -> int:
    """CPUs this process may run on: its affinity, or its control group's quota if that is less."""
    affinity = len(os.sched_getaffinity(0))
    quota = cgroup.cpu_quota()
    return affinity if quota is None else max(1, min(affinity, int(quota)))


def threads(share: int, cores: int) -> int:
    """Threads for a share of ``share`` percent, at least one; exact at each rung."""
    return max(1, bisect_right(_steps(cores), share))


def rungs(cores: int) -> tuple[int, ...]:
    """Shares in percent, ascending, at which the number of threads grows: (50, 100) on two cores.

    Rungs that add up to at most 100 never mean more threads than cores: threads that spin on a taken core
    cost ten times what they give.
    """
    return tuple(dict.fromkeys(_steps(cores)))


@cache
def _steps(cores: int) -> tuple[int, ...]:
    """Percent for 1, 2 ... ``cores`` threads.

    Rounded down, so that equal parts of whole percents (33 of three cores) get their whole thread, where that
    is safe: floor(a) + floor(b) <= floor(a + b), so one thread too many is cheapest as cores + 1 single
    threads, and must still cost more than 100. Else rounded up, which is always safe.
    """
    if (cores + 1) * (100 // cores) > 100:
        return tuple(100 * n // cores for n in range(1, cores + 1))
    return tuple(-(-100 * n // cores) for n in range(1, cores + 1))


def worker_env(cores: int) -> dict[str, str]:
    """What a process's environment must say before it imports torch, when OpenMP reads it once.

    The runner chooses the threads of a batch from the granted share, never above ``cores``.
    """
    return {
        "OMP_NUM_THREADS": str(cores),
        "MKL_NUM_THREADS": str(cores),
        "OPENBLAS_NUM_THREADS": "1",  # numpy's own pool would compete with torch's
        # Threads wait spinning for a bounded while, by default libgomp's own. Measured: sleeping at once (0,
        # PASSIVE) costs a lone worker 40 %. It is for ``threads`` to prevent that workers have more of them
        # than cores; who shares the machine with other work may give the daemon a smaller count.
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "300000"),
        "OMP_DYNAMIC": "false",
        "OMP_PROC_BIND": "false",  # bound threads of all workers would sit on the same first cores
    }


def _mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:,.0f} MiB"
