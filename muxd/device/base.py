"""What a device offers the daemon: memory that other processes can map, and a number of cores to share.

No driver and no torch here; ``device.cpu`` is one implementation. Used by ``pool.arena`` and the fleet.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Region(Protocol):
    """Device memory exported as a file descriptor. Holding it keeps the memory alive, nothing is mapped."""

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        ...

    @property
    def fd(self) -> int:
        """Descriptor to pass to another process (SCM_RIGHTS); owned by the region."""
        ...

    def array(self) -> NDArray[np.uint8]:
        """A writable mapping uint8[nbytes] for filling it; it lives as long as the array."""
        ...

    def close(self) -> None:
        """Drop this process's hold. Mappings, here and elsewhere, stay valid. May be called twice."""
        ...


class Device(Protocol):
    """One place where models run."""

    @property
    def name(self) -> str:
        """As in ``messages.Setup.device``."""
        ...

    @property
    def cores(self) -> int:
        """What a share of 100 % means: CPU threads, or SMs."""
        ...

    @property
    def rungs(self) -> tuple[int, ...]:
        """Shares in percent, ascending, at which a worker really gets more cores. Others round down."""
        ...

    def worker_env(self) -> dict[str, str]:
        """Environment variables a worker must be spawned with."""
        ...

    def allocate(self, nbytes: int, label: str) -> Region:
        """Zeroed memory; ``label`` ("pool", "weights") shows up in tools and in errors.

        Raises ConfigError naming the setting to lower when the memory is not there.
        """
        ...
