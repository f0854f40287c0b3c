"""What the Triton files share on the host: a launch as a value, and the sizes kernels are padded to.

A launch that is a value is run on a device, compiled for another one without a device, or looked at: tests
compile what really would be launched.
"""

from typing import Any, NamedTuple

from torch import Tensor


class Constants(dict[str, Any]):
    """``Call.options`` that are worked out once for a shape and that nobody changes. What was compiled for
    them stays with them: ``Call.run`` need not have Triton look at every argument again."""

    def __init__(self, **values: Any):
        super().__init__(values)
        # By ``_kinds``: the compiled kernel, and the constants in the order of its signature.
        self.compiled: dict[tuple[object, ...], tuple[Any, tuple[Any, ...]]] = {}


class Call(NamedTuple):
    """One kernel launch. ``arguments`` come first in the kernel's signature, its constants behind them,
    and the first is a tensor. ``options`` are constants by name, warps and stages."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def run(self) -> None:
        """Launch on the current stream; an empty grid launches nothing."""
        if not all(self.grid):
            return
        if not isinstance(self.options, Constants) or (kinds := _kinds(self)) is None:
            self.kernel[self.grid](*self.arguments, **self.options)
        elif (found := self.options.compiled.get(kinds)) is not None:
            kernel, constants = found
            kernel[(*self.grid, 1, 1)[:3]](*self.arguments, *constants)
        # None of the interpreter, which compiles nothing.
        elif (kernel := self.kernel[self.grid](*self.arguments, **self.options)) is not None:
            names = self.kernel.arg_names[len(self.arguments) :]
            self.options.compiled[kinds] = kernel, tuple(self.options[name] for name in names)


def _kinds(call: Call) -> tuple[object, ...] | None:
    """All that Triton compiles other kernels for: types, and of a number whether it is one, a multiple of 16,
    wide. (Of some it looks at less.) None where memory does not start at a multiple of 16, which is rare."""
    kinds: list[object] = [id(call.kernel), call.arguments[0].get_device()]
    starts = 0
    for argument in call.arguments:
        if isinstance(argument, Tensor):
            starts |= argument.data_ptr()
            kinds.append(argument.dtype)
        else:
            kinds.append(_kind(argument))
    return None if starts & 15 else tuple(kinds)


def _kind(number: object) -> object:
    if type(number) is not int:
        return type(number)
    if -(1 << 31) <= number < 1 << 31:
        return 1 if number == 1 else 16 if number & 15 == 0 else 0
    return "wide", number & 15 == 0, number < 1 << 63


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length() if n > 1 else 1


def ceil_div(n: int, by: int) -> int:
    """``n`` / ``by``, rounded up."""
    return -(-n // by)
