"""Mixtures of experts as config.json says them: how many, how many a token, how wide, in which layers.

No torch. Every reader raises ModelFolderError by file and field.
"""

from typing import Literal

from msgspec import Struct, structs

from muxd.models.blocks import METHOD
from muxd.models.config_file import Fields, shown
from muxd.models.folder import MXFP4
from muxd.models.stacks import GROUP


class Experts(Struct, frozen=True):
    """What stands in place of a layer's MLP, or beside it: a token goes to its best few of many (Shazeer et
    al. 2017)."""

    count: int
    chosen: int  # of a token
    inner: int  # the width of one
    normalised: bool  # the weights of those chosen add up to 1
    layers: tuple[bool, ...]  # which have them; the others have an MLP
    biased: bool = False  # so are the router's scores
    alpha: float = 1.0  # the gate is g · sigmoid(alpha · g)
    limit: float = 0.0  # to which gate and up are clamped, and up gets 1 added; 0: neither
    # Each expert's by itself, or all of a layer in one tensor.
    stored: Literal["each", "rows", "stacked", "mxfp4", "straight"] = "each"
    beside: bool = False  # the MLP, both with norms of their own, and so is what the router reads
    gelu: bool = False  # gates by GELU's tanh form
    scaled: bool = False  # the weights of those chosen are multiplied by a number of each expert
    shared: int = 0  # the width of one that every token goes to, through a gate; 0: there is none


def mixtral_experts(fields: Fields) -> Experts:
    """Every layer; ``router_jitter_noise`` is of training."""
    layers = fields.integer("num_hidden_layers")
    inner = fields.integer("intermediate_size")
    return _checked(fields, fields.integer("num_local_experts", 8), 2, inner, True, (True,) * layers)


def olmoe_experts(fields: Fields) -> Experts:
    """Every layer, ``intermediate_size`` wide."""
    count, layers = _count(fields, 64), fields.integer("num_hidden_layers")
    normalised = fields.flag("norm_topk_prob", False)
    return _checked(fields, count, 8, fields.integer("intermediate_size"), normalised, (True,) * layers)


def qwen3_experts(fields: Fields) -> Experts:
    """Every ``decoder_sparse_step``-th layer but ``mlp_only_layers``."""
    inner, normalised = fields.integer("moe_intermediate_size", 768), fields.flag("norm_topk_prob", False)
    return _checked(fields, _count(fields, 128), 8, inner, normalised, _sparse(fields))


def qwen3_next_experts(fields: Fields) -> Experts:
    """The same layers, with an expert that is shared."""
    inner, normalised = fields.integer("moe_intermediate_size", 512), fields.flag("norm_topk_prob", True)
    found = _checked(fields, _count(fields, 512), 10, inner, normalised, _sparse(fields))
    return structs.replace(found, shared=fields.integer("shared_expert_intermediate_size", 512))


def qwen3_5_experts(fields: Fields) -> Experts:
    """Every layer, with an expert that is shared."""
    fields.must_be("norm_topk_prob", True, default=True)
    fields.must_be("mlp_only_layers", [], default=[])
    fields.must_be("decoder_sparse_step", 1, default=1)
    every = (True,) * fields.integer("num_hidden_layers")
    found = _checked(
        fields, _count(fields, 256), 8, fields.integer("moe_intermediate_size", 512), True, every
    )
    return structs.replace(found, shared=fields.integer("shared_expert_intermediate_size", 512))


def _sparse(fields: Fields) -> tuple[bool, ...]:
    step, dense = fields.integer("decoder_sparse_step", 1), fields.raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(one) is int for one in dense):
        raise fields.refuse("mlp_only_layers", f"must be a list of layers, not {shown(dense)}")
    layers = fields.integer("num_hidden_layers")
    return tuple((i + 1) % step == 0 and i not in dense for i in range(layers))


def gpt_oss_experts(fields: Fields) -> Experts:
    """Every layer; the weights of those chosen are a softmax over their own scores. A GGUF's blocks lie along
    inputs, so that an import which keeps them has each expert's matrices by themselves."""
    layers, settings = fields.integer("num_hidden_layers"), fields.table("quantization_config")
    found = _checked(
        fields, _count(fields, 128), 4, fields.integer("intermediate_size"), True, (True,) * layers
    )
    method = settings.raw.get("quant_method") if settings is not None else None
    packed = method == MXFP4
    for key in ("hidden_size", "intermediate_size"):
        if packed and fields.integer(key) % GROUP:
            raise fields.refuse(key, f"must be a multiple of {GROUP} where experts are MXFP4")
    return structs.replace(
        found,
        biased=True,
        alpha=fields.number("swiglu_alpha", 1.702),
        limit=fields.number("swiglu_limit", 7.0),
        stored="mxfp4" if packed else "each" if method == METHOD else "stacked",
    )


def gemma4_experts(fields: Fields) -> Experts | None:
    """Every layer, beside its MLP, where ``enable_moe_block`` says so."""
    if not fields.flag("enable_moe_block", False):
        return None
    layers, count = fields.integer("num_hidden_layers", 30), fields.integer("num_experts")
    if (chosen := fields.integer("top_k_experts")) > count:
        raise fields.refuse("top_k_experts", f"is {chosen}, of {count} experts")
    inner = fields.integer("moe_intermediate_size")
    every = (True,) * layers
    return Experts(count, chosen, inner, True, every, stored="straight", beside=True, gelu=True, scaled=True)


def _count(fields: Fields, absent: int) -> int:
    """Transformers 5 calls ``num_experts`` ``num_local_experts``."""
    names = ("num_experts", "num_local_experts")
    told = {fields.integer(name) for name in names if fields.raw.get(name) is not None}
    if len(told) > 1:
        raise fields.refuse(names[0], f"and {names[1]} must be the same number")
    return told.pop() if told else absent


def _checked(
    fields: Fields, count: int, chosen: int, inner: int, normalised: bool, layers: tuple[bool, ...]
) -> Experts:
    """``chosen``: where the file does not say."""
    chosen = fields.integer("num_experts_per_tok", chosen)
    if chosen > count:
        raise fields.refuse("num_experts_per_tok", f"is {chosen}, of {count} experts")
    return Experts(count, chosen, inner, normalised, layers)
