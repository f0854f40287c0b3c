"""The daemon's memory as tensors: pool and weights, mapped once for the life of the process."""

import mmap
import os
import warnings
from typing import NamedTuple

import torch

from muxd.device.base import ClientView
from muxd.device.cuda_tensor import DeviceMemory, bytes_at
from muxd.device.reservation import HostReservation, Reservation
from muxd.link.fds import WireError
from muxd.messages import Setup

# torch.frombuffer keeps nothing alive: a tensor over a closed mapping is SIGSEGV at its next access.
# So mappings are never closed; the process's end does it.
_mappings: list[mmap.mmap] = []


class Mapped(NamedTuple):
    """``pool`` and ``weights`` as uint8 [bytes]; ``view``: what this process sees of its device.

    ``pool`` covers all the addresses of ``space``; only what is mapped there may be touched.
    """

    pool: torch.Tensor
    space: Reservation
    weights: torch.Tensor
    view: ClientView


def map_regions(setup: Setup, fds: list[int]) -> Mapped:
    """The daemon's memory on the set-up's device; closes ``fds``, pool and weights (mappings keep it).

    Weights are read-only pages: a stray write ends this worker instead of silently changing the model for
    every worker that maps it (a GPU without such pages maps them writable). Raises WireError when the
    descriptors do not fit the set-up, another MuxdError when a GPU cannot map them.
    """
    try:
        if setup.device != "cpu":
            return _map_device(setup, fds)
        _check_size(fds[0], setup.pool_bytes, "pool")
        space = HostReservation(max(setup.pool_bytes, setup.pool_reach))
        space.map(0, fds[0], setup.pool_bytes)
        pool = bytes_at(space.address, max(setup.pool_bytes, setup.pool_reach), None)
        weights = _map(fds[1], setup.weights_bytes, "weights", mmap.PROT_READ)
    finally:
        for fd in fds:
            os.close(fd)
    return Mapped(pool, space, weights, ClientView())


def _map_device(setup: Setup, fds: list[int]) -> Mapped:
    try:
        memory = DeviceMemory(int(setup.device.partition(":")[2] or 0))
    except (RuntimeError, AssertionError, ValueError) as error:  # torch has no CUDA, or no such device
        first = str(error).partition("\n")[0]
        raise WireError(f"device {setup.device}: torch {torch.__version__} cannot use it: {first}") from None
    pool, space = memory.growing(fds[0], setup.pool_bytes, max(setup.pool_bytes, setup.pool_reach))
    weights = memory.tensor(fds[1], setup.weights_bytes, writable=False)
    return Mapped(pool, space, weights, memory.view())


def _map(fd: int, nbytes: int, name: str, protection: int) -> torch.Tensor:
    _check_size(fd, nbytes, name)
    mapping = mmap.mmap(fd, nbytes, mmap.MAP_SHARED, protection)
    _mappings.append(mapping)
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; the page protection is what we rely on.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapping, dtype=torch.uint8)


def _check_size(fd: int, nbytes: int, name: str) -> None:
    """Mapping beyond the end would succeed and be SIGBUS later."""
    size = os.fstat(fd).st_size
    if not 0 < nbytes <= size:
        raise WireError(f"{name}: the set-up says {nbytes} bytes, its descriptor has {size}")
