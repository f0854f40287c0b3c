"""Which head blocks of a row are whose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.kernels.row_layout import KvHeads, laid_out, uniform


def test_layers_that_are_alike_lie_one_after_another() -> None:
    layout = uniform(3, 4, 64)
    assert (layout.blocks, layout.head_dim) == (12, 64)
    assert [one.first for one in layout.layers] == [0, 4, 8]
    second = layout.layers[1]
    assert second.keys == second.values == slice(4, 8, 1)
    assert (second.width, second.own, second.value_slot(16)) == (1, True, 16)


def test_wide_heads_have_two_blocks_and_some_layers_none() -> None:
    layers = (KvHeads(2, 256), KvHeads(0, 256), KvHeads(1, 512), KvHeads(2, 256, of=0), KvHeads(1, 512, of=2))
    layout = laid_out(layers)
    assert (layout.blocks, layout.head_dim) == (4, 256)
    narrow, none, wide, reads, reads_wide = layout.layers
    assert (narrow.first, narrow.width, none.kv_heads, none.own) == (0, 1, 0, False)
    assert (wide.first, wide.width, wide.keys, wide.values) == (2, 2, slice(2, 4, 2), slice(3, 5, 2))
    assert (wide.value_slot(8), narrow.value_slot(8)) == (0, 8)
    assert reads == narrow._replace(own=False)
    assert reads_wide == wide._replace(own=False)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ((KvHeads(1, 64), KvHeads(1, 256)), "heads of 64, 256 dimensions"),
        ((KvHeads(1, 64), KvHeads(1, 96)), "heads of 64, 96 dimensions"),
        ((KvHeads(0, 64),), "no layer has keys and values"),
    ],
)
def test_what_no_row_holds(layers: tuple[KvHeads, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        laid_out(layers)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12))
def test_every_block_is_the_keys_or_the_values_of_one_head(heads: list[tuple[int, bool]]) -> None:
    layers = tuple(KvHeads(count, 128 if wide else 64) for count, wide in [*heads, (1, False)])
    layout = laid_out(layers)
    row = range(layout.blocks)
    taken = [
        block
        for one in layout.layers
        for block in (*row[one.keys], *(row[one.values] if one.width == 2 else ()))
        if one.own
    ]
    assert sorted(taken) == list(row)
    assert all(len(row[one.keys]) == len(row[one.values]) == one.kv_heads for one in layout.layers)
