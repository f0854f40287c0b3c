"""Of every family of kernels one is compiled by `make test`, all by `make test-all`."""

import pytest

FAMILIES = {
    "test_attention", "test_rope_write", "test_rms_norm", "test_gates", "test_sampling",
    "test_tables_and_counts",
}  # fmt: skip


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.path.name != "test_compiled.py" or not isinstance(item, pytest.Function):
        return
    item.add_marker("compile")
    indices = item.callspec.indices.values() if hasattr(item, "callspec") else ()
    if item.originalname in FAMILIES and not any(indices):
        item.add_marker("smoke")
