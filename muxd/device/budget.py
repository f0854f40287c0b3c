"""What pool and weights of one device may take together, where the configuration sets a limit."""

from muxd.device.base import Region
from muxd.errors import OutOfMemory


class Budget:
    """``limit`` in bytes; 0: none. ``key`` names the setting in errors."""

    def __init__(self, limit: int = 0, key: str = "device.memory"):
        self.limit, self._key = limit, key
        self._held: list[tuple[Region, int]] = []

    @property
    def held(self) -> int:
        """Bytes of all regions that are not closed."""
        self._held = [(region, beside) for region, beside in self._held if not region.closed]
        return sum(region.nbytes + beside for region, beside in self._held)

    def admit(self, nbytes: int, label: str) -> None:
        """Raises OutOfMemory where ``nbytes`` more are too many."""
        left = self.limit - self.held
        if self.limit and nbytes > left:
            raise OutOfMemory(
                f"not enough memory for {label}: {nbytes} bytes wanted, {max(0, left)} left of {self._key} = "
                f"{self.limit}: raise it, lower the pool, or serve fewer models here"
            )

    @property
    def left(self) -> int | None:
        """Bytes; None: there is no limit."""
        return self.limit - self.held if self.limit else None

    def drop(self, region: Region) -> None:
        """It counts no more, though it stays open."""
        self._held = [(one, beside) for one, beside in self._held if one is not region]

    def keep(self, region: Region, beside: int = 0) -> None:
        """It counts until it is closed, and so do the bytes that its users take ``beside`` it."""
        self._held.append((region, beside))
