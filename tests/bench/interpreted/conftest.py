"""The variants that no GPU has timed: in Triton's interpreter they compute what the kernels that serve do."""

import sys
from pathlib import Path

import pytest
from support import interpreting

sys.path.append(str(Path(__file__).parents[3] / "benchmarks"))

interpreting.compute_as_a_device()


def pytest_itemcollected(item: pytest.Item) -> None:
    interpreting.mark(item)
