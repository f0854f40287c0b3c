"""The pool as memory: a region of the device cut into head blocks, and the ledger that accounts for them.

Made once by the daemon. Holds no mapping: the daemon never touches K and V, workers map ``fd``.
"""

from muxd.device.base import Device
from muxd.errors import ConfigError
from muxd.pool.ledger import Ledger


class Arena:
    """``pool_bytes`` rounded down to whole head blocks.

    Head block ``i`` of the ledger is the bytes [i * block_bytes, (i + 1) * block_bytes) of ``fd``.
    """

    def __init__(self, device: Device, pool_bytes: int, block_bytes: int):
        if pool_bytes < block_bytes:
            raise ConfigError(
                f"pool.bytes: {pool_bytes} is smaller than one head block (pool.block_bytes = {block_bytes})"
            )
        self.block_bytes = block_bytes
        total = pool_bytes // block_bytes
        # Memory first: the device refuses a pool far beyond it before books of that size are made.
        self._region = device.allocate(total * block_bytes, "pool")
        try:
            self.ledger = Ledger(total)
        except ConfigError:
            self._region.close()
            raise

    @property
    def total_blocks(self) -> int:
        """Head blocks in the pool."""
        return self.ledger.total_blocks

    @property
    def nbytes(self) -> int:
        """Bytes of the region, a multiple of ``block_bytes``."""
        return self._region.nbytes

    @property
    def fd(self) -> int:
        """Descriptor to pass to workers; owned by the arena."""
        return self._region.fd

    def close(self) -> None:
        """Give the daemon's hold back; the memory lives until the last worker has gone."""
        self._region.close()
