"""What a device offers the daemon: memory that other processes can map, and a number of cores to share.

No driver and no torch here; ``device.cpu`` and ``device.cuda`` are the implementations. Used by
``pool.arena`` and the fleet.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from muxd.errors import ConfigError
from muxd.messages import Dtype


class Writer(Protocol):
    """Fills a region piece by piece, wherever it lies. A context manager: leaving it waits for the copies."""

    def window(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Host memory uint8[nbytes] that becomes bytes [offset, offset + nbytes) of the region.

        To be filled before the next ``window`` and not touched after it. Raises ValueError outside the
        region, MuxdError when what was written before did not arrive.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, /, *_: object) -> None: ...


class RegionPlace(Struct, frozen=True):
    """A region of ``nbytes`` bytes in the host's memory, or on ``gpu``, which wants ``environment`` of a
    process."""

    nbytes: int
    gpu: int | None = None
    environment: dict[str, str] = {}


class Region(Protocol):
    """Device memory, as large on every member of its device. Holding it keeps the memory alive, nothing is
    mapped."""

    @property
    def nbytes(self) -> int:
        """Bytes on each member."""
        ...

    @property
    def pieces(self) -> "tuple[Piece, ...]":
        """What lies on each member, in their order; of one device the region itself."""
        ...

    @property
    def closed(self) -> bool:
        """Whether this process's hold was dropped."""
        ...

    def close(self) -> None:
        """Drop this process's hold. Mappings, here and elsewhere, stay valid. May be called twice."""
        ...


class Piece(Region, Protocol):
    """A region of one device, exported as a file descriptor."""

    @property
    def fd(self) -> int:
        """Descriptor to pass to another process (SCM_RIGHTS); owned by the region."""
        ...

    @property
    def place(self) -> RegionPlace:
        """For another process to fill it (``device.writing``)."""
        ...

    def writer(self) -> Writer:
        """For filling it. One at a time; blocking, so from a thread."""
        ...


@dataclass(frozen=True, slots=True)
class ClientView:
    """What a worker sees of its device: whether it is a client of MPS, and how many cores it has."""

    mps: bool = False
    sms: int = 0


class Device(Protocol):
    """One place where models run: a device, or a mesh of several, whose numbers are those of each."""

    @property
    def members(self) -> "tuple[Device, ...]":
        """The devices that it is made of; one is made of itself."""
        ...

    def seat(self, ranks: int) -> "Device":
        """Where in it a model of so many ranks lies: on all its members, or, of one rank, on one of them,
        that with most room. Raises ConfigError for any other number."""
        ...

    @property
    def name(self) -> str:
        """As in ``messages.Setup.device``."""
        ...

    @property
    def kind(self) -> str:
        """What it is, for people and for tables of costs: "NVIDIA H200"; "CPU"."""
        ...

    @property
    def cores(self) -> int:
        """What a share of 100 % means: CPU threads, or SMs."""
        ...

    @property
    def cpus(self) -> tuple[int, ...]:
        """The CPUs a worker must stay on; none: wherever it likes."""
        ...

    @property
    def memory(self) -> int:
        """Bytes that pool and weights may take together."""
        ...

    @property
    def rungs(self) -> tuple[int, ...]:
        """Shares in percent, ascending, at which a worker really gets more cores. Others round down."""
        ...

    @property
    def granularity(self) -> int:
        """Bytes that the size and place of mapped memory must be a multiple of."""
        ...

    @property
    def caps(self) -> bool:
        """Whether a worker can never use more than the share it was started with."""
        ...

    @property
    def parts(self) -> int:
        """Parts that a batch's share is made of, named by a mask in its command; 0 where there are none."""
        ...

    def worker_env(self, cap: int = 0) -> dict[str, str]:
        """Environment variables a worker must be spawned with.

        ``cap``: percent of the device it can never exceed, where the device can impose that; 0: no cap.
        """
        ...

    def copies(self, dtype: Dtype) -> bool:
        """Whether a worker computes with a copy of its own of every matrix of that type."""
        ...

    @property
    def room(self) -> int:
        """Bytes that are left for weights now."""
        ...

    @property
    def shared(self) -> int | None:
        """Bytes that are left now for weights here and for those that sleep, where both are in the host's
        memory; None: what sleeps takes none of the device's."""
        ...

    def shelve(self, region: Region) -> bool:
        """Keep weights in the host's memory, where they take nothing of the device's; False: not here."""
        ...

    def unshelve(self, region: Region, beside: int = 0) -> None:
        """They are the device's again. Raises OutOfMemory as ``allocate``."""
        ...

    def allocate(self, nbytes: int, label: str, beside: int = 0) -> Region:
        """At least ``nbytes`` of memory; ``label`` ("pool", "weights") shows up in tools and in errors.
        ``beside``: bytes that the region's users take for themselves: they count as long as it is open.

        What it contains is unspecified (zeros on the CPU). Raises OutOfMemory, a ConfigError naming the
        setting to lower, when the memory is not there.
        """
        ...

    # The rest may block for seconds: from a thread.

    def attached(self, pid: int, view: ClientView, cap: int = 0) -> str:
        """Why the worker ``pid``, which says ``view``, does not share the device as asked; "" if it does."""
        ...

    def end_work(self, pid: int) -> None:
        """End what a worker has running on the device, before it is killed."""
        ...

    def faulted(self) -> bool:
        """Whether one worker's fault has reached all workers of the device, so that all must be replaced."""
        ...

    def close(self) -> None:
        """Give up what was started for sharing; after all workers are gone. May be called twice."""
        ...


def seat_alone(device: Device, ranks: int) -> Device:
    """``Device.seat`` of a device that is no mesh."""
    if ranks != 1:
        raise ConfigError(f"model.tp: {device.name} is one device, and the model is to be cut over {ranks}")
    return device


def is_gpu(device: Device) -> bool:
    """Whether it is a GPU, of whatever kind."""
    return device.kind != "CPU"


class HostWriter:
    """A Writer straight into host memory that is mapped already: no copy is made."""

    def __init__(self, array: NDArray[np.uint8]):
        self._array = array

    def window(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """See ``Writer.window``."""
        check_window(offset, nbytes, len(self._array))
        return self._array[offset : offset + nbytes]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def check_window(offset: int, nbytes: int, size: int) -> None:
    """Raises ValueError unless [offset, offset + nbytes) lies in ``size`` bytes."""
    if offset < 0 or nbytes < 0 or offset + nbytes > size:
        raise ValueError(f"bytes {offset} to {offset + nbytes} do not lie in a region of {size}")
