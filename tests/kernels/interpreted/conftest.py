"""These tests run Triton's interpreter, which must be chosen before the kernels are imported: all of the
process has TRITON_INTERPRET=1, as in the line of `make test-all`, or they are left out."""

import os
from importlib import metadata

import numpy as np
import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def version(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in metadata.version(package).split(".")[:2])


def why_not() -> str:
    try:
        triton = version("triton")
    except metadata.PackageNotFoundError:
        return "triton is not installed"
    if triton < (3, 7) and version("numpy") >= (2, 4):
        return "the interpreter of triton 3.6 does not run with numpy 2.4 or later"
    return "" if INTERPRETED else "the interpreter is chosen at import: set TRITON_INTERPRET=1"


if INTERPRETED and not why_not():
    from support import interpreter_floats

    interpreter_floats.install()
    np.seterr(
        all="ignore"
    )  # numpy plays the device, where an exponential that overflows is infinite and silent


def pytest_itemcollected(item: pytest.Item) -> None:
    item.add_marker("interpreter")
    # Triton 3.6 still takes scalars out of arrays in a way that numpy 2 calls deprecated.
    item.add_marker(pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"))
    if why := why_not():
        item.add_marker(pytest.mark.skip(reason=why))
