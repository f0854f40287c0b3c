"""Where a sequence's state lies in its rows: every number has one place, and no place has two."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.errors import NoRow
from muxd.models.delta import DeltaNet
from muxd.models.state_layout import FLOAT, rows_of_state, state_layout

deltas = st.builds(
    DeltaNet,
    layers=st.lists(st.booleans(), min_size=1, max_size=6).map(tuple),
    key_heads=st.integers(1, 3),
    value_heads=st.integers(1, 3).map(lambda n: 6 * n),
    key_dim=st.integers(1, 300),
    value_dim=st.integers(1, 64),
    kernel=st.integers(2, 5),
)


@dataclass
class Place:
    """Lines [first, stop) of what lies in one block."""

    what: str
    first: int
    stop: int


def places(delta: DeltaNet, block_bytes: int) -> dict[int, Place]:
    layout, found = state_layout(delta, block_bytes), dict[int, Place]()
    for layer, keeps in enumerate(delta.layers):
        if not keeps:
            continue
        for head in range(delta.value_heads):
            for part in range(layout.head_blocks):
                stop = min(delta.key_dim, (part + 1) * layout.lines)
                place = Place(f"{layer}.{head}", part * layout.lines, stop)
                assert found.setdefault(layout.head(layer, head) + part, place) is place
        for part in range(layout.tail_blocks):
            floats = block_bytes // FLOAT
            stop = min((delta.kernel - 1) * delta.channels, (part + 1) * floats)
            place = Place(f"{layer}.tail", part * floats, stop)
            assert found.setdefault(layout.tail(layer) + part, place) is place
    assert sorted(found) == list(range(layout.blocks))
    return found


@given(deltas, st.sampled_from([256, 1024, 4096, 8192]))
def test_each_block_holds_something_and_all_of_a_state_has_a_block(delta: DeltaNet, block_bytes: int) -> None:
    held: dict[str, int] = {}
    for place in places(delta, block_bytes).values():
        assert place.first < place.stop
        held[place.what] = held.get(place.what, 0) + place.stop - place.first
    for what, count in held.items():
        wanted = (delta.kernel - 1) * delta.channels if what.endswith("tail") else delta.key_dim
        assert count == wanted
    assert len(held) == sum(delta.layers) * (delta.value_heads + 1)


@given(deltas, st.integers(1, 40))
def test_rows_are_as_many_as_its_blocks_need(delta: DeltaNet, per_row: int) -> None:
    rows, blocks = rows_of_state(delta, 1024, per_row), state_layout(delta, 1024).blocks
    assert rows * per_row >= blocks > (rows - 1) * per_row


def test_published_sizes() -> None:
    """Qwen3.5 9B: 24 of 32 layers, 32 heads of 128 x 128; nothing of a head's blocks is left over."""
    delta = DeltaNet((True, True, True, False) * 8, 16, 32, 128, 128, 4)
    layout = state_layout(delta, 8192)
    assert (layout.lines, layout.head_blocks, layout.tail_blocks) == (16, 8, 12)
    assert delta.state_bytes == layout.blocks * 8192 == 24 * (32 * 65_536 + 98_304)


def test_a_block_that_holds_no_line_is_refused_by_the_setting() -> None:
    delta = DeltaNet((True,), 1, 1, 16, 512, 4)
    with pytest.raises(NoRow, match=r"pool\.block_bytes: 1024 holds no line .* at least 2048 are needed"):
        state_layout(delta, 1024)
