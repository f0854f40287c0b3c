"""The pool as memory: a region of the device cut into head blocks, and the ledger that accounts for them.

Made once by the daemon. Holds no mapping: the daemon never touches K and V, workers map ``fds``. Memory of
models that are not served can be lent to it, extent by extent, at addresses that every worker has reserved.
"""

from dataclasses import dataclass
from math import lcm

from muxd.device.base import Device, Region
from muxd.errors import ConfigError
from muxd.pool.ledger import Ledger


@dataclass(frozen=True, eq=False)
class Extent:
    """Lent memory: head blocks [first, first + count), mapped by workers at byte ``offset`` of the pool."""

    offset: int
    first: int
    count: int
    region: Region


class Arena:
    """``pool_bytes`` rounded down to whole head blocks, and up to ``lendable`` bytes of extents.

    Head block ``i`` of the ledger is the bytes [i * block_bytes, (i + 1) * block_bytes) of a worker's
    addresses; those of the pool itself are the bytes of ``fds``, on each member of the device the same.
    """

    def __init__(self, device: Device, pool_bytes: int, block_bytes: int, lendable: int = 0):
        if pool_bytes < block_bytes:
            raise ConfigError(
                f"pool.bytes: {pool_bytes} is smaller than one head block (pool.block_bytes = {block_bytes})"
            )
        self.block_bytes = block_bytes
        self.extents: list[Extent] = []
        self._device = device
        self._step = lcm(block_bytes, device.granularity)
        total = pool_bytes // block_bytes
        self._begin = -(-total * block_bytes // self._step) * self._step
        self.reach = (
            self._begin + -(-lendable // self._step) * self._step if lendable else total * block_bytes
        )
        # Memory first: the device refuses a pool far beyond it before books of that size are made.
        self._region = device.allocate(total * block_bytes, "pool")
        try:
            self.ledger = Ledger(total, self.reach // block_bytes)
        except ConfigError:
            self._region.close()
            raise

    @property
    def total_blocks(self) -> int:
        """Head blocks in the pool itself."""
        return self.ledger.total_blocks

    @property
    def most_blocks(self) -> int:
        """Head blocks there can ever be."""
        return self.ledger.reach

    @property
    def nbytes(self) -> int:
        """Bytes of the region, a multiple of ``block_bytes``."""
        return self._region.nbytes

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors to pass to workers, one for each member of the device; owned by the arena."""
        return tuple(piece.fd for piece in self._region.pieces)

    def whole(self, nbytes: int) -> int:
        """The bytes of ``nbytes`` that can be lent: whole head blocks in whole pages."""
        return nbytes // self._step * self._step

    def lend(self, nbytes: int) -> Extent | None:
        """At most ``nbytes`` more memory; to be mapped by every worker, then told to the ledger. None where
        no whole page, or no free address, is left. Raises ConfigError when the device has no memory."""
        size = self.whole(nbytes)
        offset = self._gap(size)
        if not size or offset is None:
            return None
        region = self._device.allocate(size, "pool")
        extent = Extent(offset, offset // self.block_bytes, size // self.block_bytes, region)
        self.extents = sorted([*self.extents, extent], key=lambda it: it.offset)
        return extent

    def withdraw(self, extent: Extent) -> None:
        """No new worker maps it from now on. The ledger must be rid of its blocks."""
        self.extents.remove(extent)

    def close(self) -> None:
        """Give the daemon's hold back; the memory lives until the last worker has gone."""
        for extent in self.extents:
            extent.region.close()
        self.extents.clear()
        self._region.close()

    def _gap(self, size: int) -> int | None:
        """The first free addresses for so many bytes."""
        at = self._begin
        for extent in self.extents:
            if extent.offset - at >= size:
                return at
            at = extent.offset + extent.region.nbytes
        return at if self.reach - at >= size else None
