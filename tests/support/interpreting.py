"""For folders of tests that run in Triton's interpreter, which must be chosen before kernels are imported:
all of the process has TRITON_INTERPRET=1, as in the line of `make test-all`, or they are left out."""

import os
from importlib import metadata

import numpy as np
import pytest

_CHOSEN = os.environ.get("TRITON_INTERPRET") == "1"


def compute_as_a_device() -> None:
    """Where the interpreter was chosen. Call it before a kernel is imported."""
    if not _CHOSEN or _why_not():
        return
    from support import interpreter_floats

    interpreter_floats.install()
    np.seterr(
        all="ignore"
    )  # numpy plays the device, where an exponential that overflows is infinite and silent


def mark(item: pytest.Item) -> None:
    item.add_marker("interpreter")
    # Triton 3.6 still takes scalars out of arrays in a way that numpy 2 calls deprecated.
    item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))
    if why := _why_not():
        item.add_marker(pytest.mark.skip(reason=why))


def _why_not() -> str:
    try:
        triton = _version("triton")
    except metadata.PackageNotFoundError:
        return "triton is not installed"
    if triton < (3, 7) and _version("numpy") >= (2, 4):
        return "the interpreter of triton 3.6 does not run with numpy 2.4 or later"
    return "" if _CHOSEN else "the interpreter is chosen at import: set TRITON_INTERPRET=1"


def _version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])
