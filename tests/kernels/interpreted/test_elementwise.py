"""Norms, gates and the tables."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_cases import check_gates, check_rms_norm

pytest.importorskip("triton")

from muxd.kernels import feed, feed_kernel, gated_kernel, rms_norm_kernel, row_table, row_table_kernel
from muxd.messages import NO_TOKEN

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("offset", [False, True])
@pytest.mark.parametrize(("n", "size"), [(1, 64), (3, 97), (2, 896), (1, 5120)])
def test_rms_norm(n: int, size: int, dtype: torch.dtype, offset: bool) -> None:
    check_rms_norm(rms_norm_kernel, n, size, dtype, offset)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "inner"), [(1, 64), (3, 97), (2, 4864)])
def test_gates(n: int, inner: int, dtype: torch.dtype) -> None:
    check_gates(gated_kernel, n, inner, dtype)


@settings(max_examples=20)
@given(st.integers(1, 4), st.integers(1, 3000), st.sampled_from(DTYPES), st.booleans())
def test_any_norm_and_gate(n: int, size: int, dtype: torch.dtype, offset: bool) -> None:
    check_rms_norm(rms_norm_kernel, n, size, dtype, offset)
    if size > 1:  # two gates far out
        check_gates(gated_kernel, n, size, dtype)


def test_nothing_to_do() -> None:
    check_rms_norm(rms_norm_kernel, 0, 64, torch.float32, False)
    assert gated_kernel.silu_gate(torch.empty(0, 8)).shape == (0, 4)


@settings(max_examples=30)
@given(st.lists(st.integers(-1, 8), max_size=6), st.integers(1, 1500))
def test_learn_rows(ids: list[int], width: int) -> None:
    ids = [i for at, i in enumerate(ids) if i < 0 or i not in ids[:at]]
    blocks = torch.randint(0, 10**6, (len(ids), width), dtype=torch.int32)
    tables = [torch.full((9, width), 7, dtype=torch.int32) for _ in range(2)]
    for module, table in zip((row_table, row_table_kernel), tables, strict=True):
        module.learn_rows(table, torch.tensor(ids, dtype=torch.int32), blocks)
    assert torch.equal(*tables)


@settings(max_examples=30)
@given(st.dictionaries(st.tuples(st.integers(-1, 5), st.integers(0, 8)), st.integers(0, 10**6), max_size=300))
def test_grow_rows(places: dict[tuple[int, int], int]) -> None:
    grown = torch.tensor([(*at, row) for at, row in places.items()], dtype=torch.int32).view(-1, 3)
    lines, columns, ids = (grown[:, i].contiguous() for i in range(3))
    tables = [torch.full((6, 9), 7, dtype=torch.int32) for _ in range(2)]
    for module, table in zip((row_table, row_table_kernel), tables, strict=True):
        module.grow_rows(table, lines, columns, ids)
    assert torch.equal(*tables)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(-1, 8), st.integers(0, 10**6)), max_size=6), st.integers(9, 1500))
def test_take_rows(new: list[tuple[int, int]], width: int) -> None:
    """Of lines in any order; a line of padding is one that another sequence has."""
    lines = torch.tensor([*reversed(range(len(new))), 0, 0], dtype=torch.int32)
    columns, ids = torch.tensor([*new, (-1, 5), (-1, 6)], dtype=torch.int32).t().contiguous()
    lists = [torch.arange(7 * width, dtype=torch.int32).view(7, width) for _ in range(2)]
    wanted, found = (
        module.take_rows(own, lines, columns, ids)
        for module, own in zip((row_table, row_table_kernel), lists, strict=True)
    )
    assert torch.equal(*lists)
    assert torch.equal(found[: len(new)], wanted[: len(new)])


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(-7, 300_000), st.integers(-1, 5000)), min_size=1, max_size=300))
def test_feed(lines: list[tuple[int, int]]) -> None:
    """Told tokens, and those of the step before; what lies behind them is not read."""
    tokens, positions = (torch.tensor(part, dtype=torch.int32) for part in zip(*lines, strict=True))
    before = torch.arange(1000, 1007)
    before[3] = NO_TOKEN  # a line of the step before had no finite logits: its sequence is dead, and harmless
    found, wanted = (module.feed(tokens, positions, before) for module in (feed_kernel, feed))
    assert wanted[0].min() >= 0
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype is torch.int32
        assert torch.equal(one, other)
