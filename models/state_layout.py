"""How the state of one sequence lies in head blocks of the pool. Pure.

A sequence of a model whose layers keep a state (``muxd.models.delta``) owns so many rows beside those of its
tokens, for its life. Their blocks one after another hold, always in float32 and for each such layer in turn,

    the state of each value head    key_dim lines of value_dim floats, whole lines in a block
    the convolution's tail          the inputs of its last kernel - 1 tokens, oldest first, as one array that
                                    is cut into blocks

Block j of the state is block j % blocks_per_row of the sequence's state row j // blocks_per_row.
"""

from typing import NamedTuple

from muxd.errors import NoRow
from muxd.models.delta import DeltaNet
from muxd.models.model_spec import ModelSpec

FLOAT = 4  # bytes


class StateLayout(NamedTuple):
    """Blocks are counted from the first of the sequence's state."""

    lines: int  # of a head's state that lie in one block; what is left at its end stays unused
    head_blocks: int  # of one value head
    tail_blocks: int
    heads: int
    places: tuple[int | None, ...]  # of each layer among those that keep a state; None: it keeps none

    @property
    def layer_blocks(self) -> int:
        """Of one layer: its heads, then its tail."""
        return self.heads * self.head_blocks + self.tail_blocks

    @property
    def blocks(self) -> int:
        """Of a sequence."""
        return self.layer_blocks * sum(place is not None for place in self.places)

    def head(self, layer: int, head: int = 0) -> int:
        """The first block of a value head's state."""
        place = self.places[layer]
        assert place is not None
        return place * self.layer_blocks + head * self.head_blocks

    def tail(self, layer: int) -> int:
        """The first block of the layer's convolution."""
        return self.head(layer, self.heads)


def state_layout(delta: DeltaNet, block_bytes: int) -> StateLayout:
    """Raises NoRow, a ConfigError, where a block does not hold one line of a state."""
    line, floats = FLOAT * delta.value_dim, block_bytes // FLOAT
    lines = block_bytes // line
    if not lines:
        raise NoRow(
            f"pool.block_bytes: {block_bytes} holds no line of the state of a model with "
            f"linear_value_head_dim {delta.value_dim}; at least {line} are needed"
        )
    places, count = list[int | None](), 0
    for keeps in delta.layers:
        places.append(count if keeps else None)
        count += keeps
    return StateLayout(
        lines=lines,
        head_blocks=-(-delta.key_dim // lines),
        tail_blocks=-(-(delta.kernel - 1) * delta.channels // floats),
        heads=delta.value_heads,
        places=tuple(places),
    )


def rows_of_state(delta: DeltaNet, block_bytes: int, blocks_per_row: int) -> int:
    """That a sequence owns beside those of its tokens."""
    return -(-state_layout(delta, block_bytes).blocks // blocks_per_row)


def state_rows(spec: ModelSpec, block_bytes: int) -> int:
    """Of a model; 0 where no layer keeps a state."""
    return 0 if spec.delta is None else rows_of_state(spec.delta, block_bytes, spec.blocks_per_row)
