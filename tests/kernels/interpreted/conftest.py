"""Kernels in Triton's interpreter, against the same references as on a GPU."""

import pytest
from support import interpreting

interpreting.compute_as_a_device()


def pytest_itemcollected(item: pytest.Item) -> None:
    interpreting.mark(item)
