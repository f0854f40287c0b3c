"""KV memory that grows and shrinks while the daemon runs: slabs of one size, each an exported region.

Slab ``i`` holds head blocks [i · n, (i + 1) · n) of the pool, n = slab_bytes / block_bytes, in every worker
at the same offset of one address range (``device.reservation``): block ids, tables and captured CUDA graphs
stay true when slabs come and go. Which blocks are free is the ledger's business; a slab may be given back
when all its blocks are free and every worker has unmapped it.
"""

from dataclasses import dataclass

from muxd.device.base import Device, Region
from muxd.errors import ConfigError

STEP = 2 << 20  # the granularity of today's GPUs, and a huge page of the CPU's


@dataclass(frozen=True, slots=True)
class Slab:
    """What workers are told: map ``fd`` at ``index * slab_bytes``."""

    index: int
    fd: int


class SlabPool:
    """Up to ``most`` slabs of ``slab_bytes`` on ``device``. Raises ConfigError for sizes that cannot be."""

    def __init__(self, device: Device, slab_bytes: int, most: int):
        if slab_bytes < STEP or slab_bytes % STEP:
            raise ConfigError(f"a slab of {slab_bytes} bytes is no multiple of {STEP}")
        if most < 1:
            raise ConfigError(f"a pool of {most} slabs")
        self.slab_bytes, self.most = slab_bytes, most
        self._device = device
        self._regions: dict[int, Region] = {}

    @property
    def slabs(self) -> list[Slab]:
        """Those there are, by index: what a new worker has to map."""
        return [Slab(index, region.fd) for index, region in sorted(self._regions.items())]

    @property
    def nbytes(self) -> int:
        """Bytes of all slabs."""
        return len(self._regions) * self.slab_bytes

    @property
    def reach(self) -> int:
        """Bytes of addresses every worker reserves."""
        return self.most * self.slab_bytes

    def add(self) -> Slab:
        """One more, at the lowest free index.

        Raises ConfigError when the pool is at its bound or the device has no memory left; nothing changes.
        """
        index = next((i for i in range(self.most) if i not in self._regions), None)
        if index is None:
            raise ConfigError(f"the pool has all {self.most} slabs that workers reserved addresses for")
        region = self._device.allocate(self.slab_bytes, "pool")
        self._regions[index] = region
        return Slab(index, region.fd)

    def remove(self, index: int) -> None:
        """Give a slab back; its memory is free once the last worker has unmapped it. Raises KeyError."""
        self._regions.pop(index).close()

    def close(self) -> None:
        """Give everything back. May be called twice."""
        for index in list(self._regions):
            self.remove(index)
