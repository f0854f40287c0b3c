"""Gemma 4, what reads in it: heads of two sizes, layers that share keys and values, inputs of each layer's
own, experts beside the MLP. Defaults as in transformers."""

from typing import Any

from msgspec import structs

from muxd.kernels.row_layout import KvHeads
from muxd.models.config_file import Fields, shown
from muxd.models.families.common import FULL, SLIDING, by_kind, kinds_of, window_of
from muxd.models.families.gemma import cap
from muxd.models.mixture import gemma4_experts
from muxd.models.model_spec import AROUND, ModelSpec
from muxd.models.rope import per_layer_type

_ROPES: dict[str, dict[str, Any]] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_MOST_SIZE, _MOST_VOCAB = 1 << 16, 1 << 26


def gemma4(fields: Fields) -> ModelSpec:
    """What sees and hears attends both ways; text does not."""
    fields.must_be("hidden_activation", "gelu_pytorch_tanh", default="gelu_pytorch_tanh")
    fields.must_be("attention_bias", False, default=False)
    if (both := fields.raw.get("use_bidirectional_attention")) not in (None, "vision"):
        raise fields.refuse("use_bidirectional_attention", f'= {shown(both)} is not served; only "vision" is')
    layers, hidden = fields.integer("num_hidden_layers", 30), fields.integer("hidden_size", 2304)
    kinds = _kinds(fields, layers)
    windows = by_kind(fields, kinds, window_of(fields, absent=512))
    sharing = _sharing(fields, kinds)
    heads = _heads(fields, kinds, sharing)
    rope, local_rope = per_layer_type(_with_ropes(fields, kinds), theta=1_000_000.0, local=10_000.0)
    values = fields.flag("attention_k_eq_v", False)
    spec = ModelSpec(
        vocab_size=fields.integer("vocab_size", 262_144),
        hidden_size=hidden,
        layers=layers,
        heads=fields.integer("num_attention_heads", 8),
        kv_heads=heads[0].heads,
        head_dim=heads[0].head_dim,
        intermediate_size=fields.integer("intermediate_size", 9216),
        max_positions=fields.integer("max_position_embeddings", 131_072),
        bos_id=fields.optional_id("bos_token_id"),
        tied_embeddings=fields.flag("tie_word_embeddings", True),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_scale=1.0,
        rope=rope,
        local_rope=local_rope,
        windows=windows,
        logit_softcap=cap(fields, "final_logit_softcapping", None),
        embed_scale=hidden**0.5,
        embed_scale_rounded=True,
        qk_norm=True,
        value_norm=True,
        gelu=True,
        norms=AROUND,
        beyond_float16=True,
        layer_heads=heads,
        keys_as_values=tuple(i for i in range(layers) if values and kinds[i] == FULL and i not in sharing),
        wide_mlps=tuple(sharing) if fields.flag("use_double_wide_mlp", False) else (),
        layer_scaled=True,
        experts=gemma4_experts(fields),
    )
    return _with_inputs(fields, spec)


def _kinds(fields: Fields, layers: int) -> list[str]:
    """The last one sees everything, whatever a file says."""
    kinds = kinds_of(fields, layers) or [SLIDING if (i + 1) % 6 else FULL for i in range(layers)]
    return [*kinds[:-1], FULL]


def _sharing(fields: Fields, kinds: list[str]) -> dict[int, int]:
    """Layers that read an earlier one's keys and values, and whose: the last one's of their kind that has its
    own."""
    count, layers = fields.integer("num_kv_shared_layers", 0, least=0), len(kinds)
    own = kinds[: layers - count] if count <= layers else []
    if set(own) != set(kinds):
        raise fields.refuse("num_kv_shared_layers", f"= {count} leaves no layer of each kind with its own")
    last = {kind: i for i, kind in enumerate(own)}
    return {i: last[kinds[i]] for i in range(len(own), layers)}


def _heads(fields: Fields, kinds: list[str], sharing: dict[int, int]) -> tuple[KvHeads, ...]:
    """By ``global_head_dim`` and ``num_global_key_value_heads``, as published, or by ``per_layer_config``, as
    transformers 5 saves it, which rules."""
    plain = KvHeads(fields.integer("num_key_value_heads", 4), fields.integer("head_dim", 256))
    full = KvHeads(plain.heads, _size(fields, "global_head_dim", 512))
    if fields.flag("attention_k_eq_v", False):
        full = full._replace(heads=_size(fields, "num_global_key_value_heads", plain.heads))
    heads = [full if kind == FULL else plain for kind in kinds]
    if (told := fields.table("per_layer_config")) is not None:
        heads = [plain] * len(kinds)
        for key in told.raw:
            heads[_layer(told, key, len(kinds))] = _own(told, key, plain)
    for layer, other in sharing.items():
        if heads[layer] != heads[other]:
            told_of = f"gives layer {layer} other heads than {other}, which it reads"
            raise fields.refuse("per_layer_config", told_of)
        heads[layer] = heads[layer]._replace(of=other)
    return tuple(heads)


def _layer(told: Fields, key: str, layers: int) -> int:
    """Written with zeros before it."""
    if not (key.isascii() and key.isdigit() and len(key) < 10 and int(key) < layers):
        raise told.refuse(shown(key), f"is not a layer; there are {layers}")
    return int(key)


def _own(told: Fields, key: str, plain: KvHeads) -> KvHeads:
    own = told.table(key)
    if own is None:
        return plain
    if others := own.raw.keys() - {"head_dim", "num_key_value_heads"}:
        raise own.refuse(shown(min(others)), "of one layer is not served; its heads are")
    return KvHeads(own.integer("num_key_value_heads", plain.heads), own.integer("head_dim", plain.head_dim))


def _with_ropes(fields: Fields, kinds: list[str]) -> Fields:
    """One of each kind; without any the published ones."""
    fields.must_be("rope_scaling", None, default=None)
    told = fields.table("rope_parameters")
    if told is None:
        return Fields(fields.path, fields.raw | {"rope_parameters": _ROPES})
    for kind in sorted(set(kinds)):
        if told.table(kind) is None:
            raise told.refuse(kind, "is missing; each kind of layer has a rope of its own")
    return fields


def _with_inputs(fields: Fields, spec: ModelSpec) -> ModelSpec:
    size = _size(fields, "hidden_size_per_layer_input", 256, least=0)
    if not size:
        return spec
    key = "vocab_size_per_layer_input"
    vocab = fields.integer(key, 262_144)
    if not spec.vocab_size <= vocab <= _MOST_VOCAB:
        raise fields.refuse(key, f"is {vocab}; it must be at least vocab_size, {spec.vocab_size}")
    return structs.replace(spec, layer_inputs=size, layer_vocab=vocab)


def _size(fields: Fields, key: str, default: int, *, least: int = 1) -> int:
    if (found := fields.integer(key, default, least=least)) > _MOST_SIZE:
        raise fields.refuse(key, f"must be at most {_MOST_SIZE}, not {found}")
    return found
