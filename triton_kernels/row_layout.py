"""Where in a row each layer's keys and values lie: in which of its head blocks, of heads how wide. No torch.

T, the tokens of a row, follows from the narrowest heads, K and V of which share a head block: K [T, d], then
V [T, d]. A head twice as wide has two blocks side by side, K [T, 2 d] in the first and V in the second, full
to the same byte, so that whoever reads or writes needs one base for keys and one for values. Layers without
keys and values, and those that read an earlier layer's, have no blocks.
"""

from functools import cache
from typing import NamedTuple


class KvHeads(NamedTuple):
    """What a layer keeps of each token."""

    heads: int  # of keys and values; 0: neither keys nor values
    head_dim: int
    of: int | None = None  # the earlier layer whose keys and values it reads; None: its own


class LayerRows(NamedTuple):
    """Where in a row a layer's keys and values lie."""

    first: int  # of the row's head blocks
    kv_heads: int
    head_dim: int
    width: int  # blocks of a head: 1, or 2 with the keys in the first
    own: bool  # the layer writes them; else they are an earlier one's

    @property
    def keys(self) -> slice:
        """Of a row's head blocks, those with this layer's keys, a KV head after the other."""
        return slice(self.first, self.first + self.kv_heads * self.width, self.width)

    @property
    def values(self) -> slice:
        """The same of its values."""
        first = self.first + self.width - 1
        return slice(first, first + self.kv_heads * self.width, self.width)

    def value_slot(self, tokens: int) -> int:
        """The slot, of ``head_dim`` numbers, where values begin in their block of ``tokens`` tokens."""
        return tokens if self.width == 1 else 0


class RowLayout(NamedTuple):
    """Of one model."""

    layers: tuple[LayerRows, ...]
    blocks: int  # head blocks of a row
    head_dim: int  # of the heads of which K and V of T tokens share a block


@cache
def laid_out(heads: tuple[KvHeads, ...]) -> RowLayout:
    """The layout of layers that keep ``heads``, in their order.

    Raises ValueError for heads that are neither as wide as the narrowest nor twice as wide, and where no
    layer keeps anything.
    """
    widths = {one.head_dim for one in heads if one.heads}
    if not widths:
        raise ValueError("no layer has keys and values")
    narrow = min(widths)
    if not widths <= {narrow, 2 * narrow}:
        raise ValueError(
            f"heads of {', '.join(map(str, sorted(widths)))} dimensions; a row holds those of one size, or "
            "of one and twice that"
        )
    layers: list[LayerRows] = []
    blocks = 0
    for one in heads:
        if one.of is not None:
            layers.append(layers[one.of]._replace(own=False))
            continue
        width = one.head_dim // narrow if one.heads else 1
        layers.append(LayerRows(blocks, one.heads, one.head_dim, width, one.heads > 0))
        blocks += one.heads * width
    return RowLayout(tuple(layers), blocks, narrow)


@cache
def uniform(layers: int, kv_heads: int, head_dim: int) -> RowLayout:
    """The layout where all layers keep the same: layer-major."""
    return laid_out((KvHeads(kv_heads, head_dim),) * layers)
