"""Layers that keep a state of each sequence in place of keys and values, as config.json says them: Gated
DeltaNet (Yang, Kautz and Hatamizadeh 2024), as Qwen3-Next and Qwen3.5 have it in three of four layers.

No torch. What a state is: ``muxd.kernels.delta_rule``; how it lies in the pool: ``muxd.models.state_layout``.
"""

from msgspec import Struct

from muxd.errors import ModelFolderError
from muxd.models.config_file import Fields

LINEAR, FULL = "linear_attention", "full_attention"  # of ``layer_types``


class DeltaNet(Struct, frozen=True):
    """The shape of such a layer, and which layers are."""

    layers: tuple[bool, ...]  # the others attend
    key_heads: int  # of queries, too; each serves ``value_heads / key_heads`` value heads one after another
    value_heads: int
    key_dim: int  # of a head
    value_dim: int
    kernel: int  # tokens that the convolution sees: the token itself and those before it
    fused: bool = False  # stored by key head: q, k, v and z of each in one matrix, b and a in another

    @property
    def count(self) -> int:
        """How many layers."""
        return sum(self.layers)

    @property
    def state_bytes(self) -> int:
        """Of one sequence, of all layers: always float32."""
        return 4 * self.count * (self.values * self.key_dim + (self.kernel - 1) * self.channels)

    def parameters(self, hidden: int) -> int:
        """Of the matrices of one layer."""
        return hidden * (self.channels + 2 * self.values + 2 * self.value_heads) + self.channels * self.kernel

    @property
    def keys(self) -> int:
        """Channels of all keys together, and of all queries."""
        return self.key_heads * self.key_dim

    @property
    def values(self) -> int:
        """Channels of all values together."""
        return self.value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """What the convolution goes over: queries, keys, values."""
        return 2 * self.keys + self.values


def delta_net(fields: Fields, *, fused: bool) -> DeltaNet:
    """Defaults as in transformers. Raises ModelFolderError by file and field."""
    fields.must_be("mamba_ssm_dtype", "float32", default="float32")
    keys, values = fields.integer("linear_num_key_heads", 16), fields.integer("linear_num_value_heads", 32)
    if values % keys:
        raise fields.refuse(
            "linear_num_value_heads", f"is {values}, no multiple of linear_num_key_heads, which is {keys}"
        )
    return DeltaNet(
        layers=_layers(fields),
        key_heads=keys,
        value_heads=values,
        key_dim=fields.integer("linear_key_head_dim", 128),
        value_dim=fields.integer("linear_value_head_dim", 128),
        kernel=fields.integer("linear_conv_kernel_dim", 4, least=2),
        fused=fused,
    )


def _layers(fields: Fields) -> tuple[bool, ...]:
    """``layer_types``, else every ``full_attention_interval``-th layer attends."""
    count, kinds = fields.integer("num_hidden_layers"), fields.raw.get("layer_types")
    if kinds is None:
        every = fields.integer("full_attention_interval", 4)
        found = tuple((i + 1) % every != 0 for i in range(count))
        if all(found):
            raise _all_linear(fields, "full_attention_interval")
        return found
    if (
        not isinstance(kinds, list)
        or len(kinds) != count
        or not all(kind in (LINEAR, FULL) for kind in kinds)
    ):
        raise fields.refuse("layer_types", f"must list {count} times one of {LINEAR}, {FULL}")
    if FULL not in kinds:
        raise _all_linear(fields, "layer_types")
    return tuple(kind == LINEAR for kind in kinds)


def _all_linear(fields: Fields, key: str) -> ModelFolderError:
    return fields.refuse(key, "leaves no layer that attends: rows of the pool would hold nothing")
