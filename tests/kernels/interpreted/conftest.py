"""These tests run Triton's interpreter, which must be chosen before the kernels are imported.

``tests/kernels/test_in_interpreter.py`` runs this folder in a process of its own; elsewhere nothing of it is
collected.
"""

import os

import pytest
from support.interpreting import interpreting

collect_ignore_glob = interpreting(os.environ)


def pytest_configure(config: pytest.Config) -> None:
    """Triton 3.6 still takes scalars out of arrays in a way that numpy 2 calls deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:Conversion of an array:DeprecationWarning")
