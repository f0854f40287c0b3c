"""These tests run Triton's interpreter, which must be chosen before the kernels are imported.

``tests/kernels/test_in_interpreter.py`` runs this folder in a process of its own; elsewhere nothing of it is
collected.
"""

import os

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") == "1":
    from support import interpreter_floats

    interpreter_floats.install()
    np.seterr(
        all="ignore"
    )  # numpy plays the device, where an exponential that overflows is infinite and silent
    collect_ignore_glob: list[str] = []
else:
    collect_ignore_glob = ["test_*"]


def pytest_configure(config: pytest.Config) -> None:
    """Triton 3.6 still takes scalars out of arrays in a way that numpy 2 calls deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array:DeprecationWarning")
