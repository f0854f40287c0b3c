"""What the Triton files share on the host: a launch as a value, and the sizes kernels are padded to.

A launch that is a value is run on a device, compiled for another one without a device, or looked at: tests
compile what really would be launched.
"""

from typing import Any, NamedTuple


class Call(NamedTuple):
    """One kernel launch. ``options`` are constants by name, warps and stages."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch on the current stream; an empty grid launches nothing."""
        if all(self.grid):
            self.kernel[self.grid](*self.arguments, **self.options)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def ceil_div(n: int, by: int) -> int:
    """``n`` / ``by``, rounded up."""
    return -(-n // by)
