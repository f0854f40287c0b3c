"""How much memory the bodies of requests may take while they arrive. Pure."""

from muxd.errors import Overloaded

_SMALL = 64 << 10  # bytes


class Arriving:
    """Bytes of all request bodies that are here, whole or in part. Small ones find room when large ones do
    not."""

    def __init__(self, most: int):
        self._most = most
        self._held = 0

    def take(self, count: int, so_far: int) -> None:
        """``count`` more of a body of which ``so_far`` are here. Raises Overloaded, having taken nothing."""
        room = self._most if so_far + count <= _SMALL else self._most * 3 // 4
        if self._held + count > room:
            raise Overloaded("the requests that arrive now are too large together; try again shortly")
        self._held += count

    def give_back(self, count: int) -> None:
        self._held -= count
