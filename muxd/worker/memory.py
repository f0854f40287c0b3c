"""The daemon's memory as tensors: pool and weights, mapped once for the life of the process."""

import mmap
import os
import warnings

import torch

from muxd.link.fds import WireError
from muxd.messages import Setup

# torch.frombuffer keeps nothing alive: a tensor over a closed mapping is SIGSEGV at its next access.
# So mappings are never closed; the process's end does it.
_mappings: list[mmap.mmap] = []


def map_regions(setup: Setup, fds: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """``(pool, weights)`` as uint8 tensors over shared memory; closes ``fds`` (mmap keeps its own copies).

    Weights are read-only pages: a stray write ends this worker instead of silently changing the model for
    every worker that maps it. Raises WireError when the descriptors do not fit the set-up.
    """
    try:
        if len(fds) != 2:
            raise WireError(f"set-up came with {len(fds)} descriptors instead of 2 (pool and weights)")
        pool = _map(fds[0], setup.pool_bytes, "pool", mmap.PROT_READ | mmap.PROT_WRITE)
        weights = _map(fds[1], setup.weights_bytes, "weights", mmap.PROT_READ)
    finally:
        for fd in fds:
            os.close(fd)
    return pool, weights


def _map(fd: int, nbytes: int, name: str, protection: int) -> torch.Tensor:
    size = os.fstat(fd).st_size
    # Mapping beyond the end would succeed and be SIGBUS later.
    if not 0 < nbytes <= size:
        raise WireError(f"{name}: the set-up says {nbytes} bytes, its descriptor has {size}")
    mapping = mmap.mmap(fd, nbytes, mmap.MAP_SHARED, protection)
    _mappings.append(mapping)
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so; the page protection is what we rely on.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(mapping, dtype=torch.uint8)
