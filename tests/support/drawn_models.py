"""Legal configurations of the families, drawn: small shapes, and what a file of the family may say."""

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from support import tiny_models
from support.tiny_models import FULL, LINEAR, SLIDING, Make

POSITIONS = 256
_THETAS = st.sampled_from([37.0, 1e4, 5e5])
_FLAGS = st.booleans()
_SCALES = st.floats(0.05, 4.0)
Config = dict[str, Any]


@st.composite
def _shapes(draw: st.DrawFn, *, square: bool = False, even: bool = False) -> Config:
    """``square``: hidden is heads times head_dim; ``even``: a multiple of the heads."""
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    heads, head_dim = kv_heads * group, 2 * draw(st.integers(2, 20))
    hidden = heads * head_dim if square else draw(st.integers(16, 72))
    if even:
        hidden = heads * draw(st.integers(-(-16 // heads), 8 + 16 // heads))
    return {
        "vocab_size": draw(st.integers(97, 300)), "hidden_size": hidden, "num_attention_heads": heads,
        "intermediate_size": draw(st.integers(8, 80)), "num_hidden_layers": draw(st.integers(1, 4)),
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "max_position_embeddings": POSITIONS,
        "tie_word_embeddings": draw(_FLAGS), "rms_norm_eps": draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
    }  # fmt: skip


def _ropes(theta: st.SearchStrategy[float] = _THETAS) -> st.SearchStrategy[Config]:
    """Of one kind of layer, with every scaling that has numbers alone."""
    trained = st.sampled_from([16, 64])
    return st.one_of(
        st.fixed_dictionaries({"rope_type": st.just("default"), "rope_theta": theta}),
        st.fixed_dictionaries(
            {"rope_type": st.just("linear"), "rope_theta": theta, "factor": st.floats(1.0, 8.0)}
        ),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("yarn"), "rope_theta": theta, "factor": st.floats(1.0, 4.0),
                "original_max_position_embeddings": trained,
            }
        ),
        st.fixed_dictionaries(
            {
                "rope_type": st.just("llama3"), "rope_theta": theta, "factor": st.floats(1.0, 8.0),
                "low_freq_factor": st.just(1.0), "high_freq_factor": st.just(4.0),
                "original_max_position_embeddings": trained,
            }
        ),
    )  # fmt: skip


@st.composite
def _windows(draw: st.DrawFn, layers: int) -> Config:
    kinds = st.lists(st.sampled_from([FULL, SLIDING]), min_size=layers, max_size=layers)
    return {"layer_types": draw(kinds), "sliding_window": draw(st.integers(1, 40))}


@st.composite
def gemma2(draw: st.DrawFn) -> Config:
    shape = draw(_shapes(even=True))
    caps = st.none() | st.floats(0.5, 30.0)
    own = {
        "attn_logit_softcapping": draw(caps), "final_logit_softcapping": draw(caps),
        "query_pre_attn_scalar": draw(st.integers(1, 64)), "rope_parameters": draw(_ropes()),
    }  # fmt: skip
    return shape | draw(_windows(shape["num_hidden_layers"])) | own


@st.composite
def phi3(draw: st.DrawFn) -> Config:
    """Sequences of a model with two lists are all longer than it was trained for, or none is."""
    shape = draw(_shapes(square=True))
    head_dim = shape["head_dim"]
    pairs = draw(st.integers(1, head_dim // 2))
    part = (2 * pairs + 0.5) / head_dim if 2 * pairs < head_dim else 1.0
    original = draw(st.sampled_from([2, 2 * POSITIONS]))
    rope = {"rope_type": "default", "rope_theta": draw(_THETAS), "partial_rotary_factor": part}
    if draw(_FLAGS):
        factors = st.lists(st.floats(1.0, 8.0), min_size=pairs, max_size=pairs)
        rope |= {
            "rope_type": "longrope", "short_factor": draw(factors), "long_factor": draw(factors),
            "original_max_position_embeddings": original,
        }  # fmt: skip
    window = draw(st.none() | st.integers(1, 40))
    return shape | {
        "rope_parameters": rope, "original_max_position_embeddings": original, "sliding_window": window,
    }  # fmt: skip


@st.composite
def granite(draw: st.DrawFn) -> Config:
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    multipliers = {name: draw(_SCALES) for name in names}
    own = {"attention_bias": draw(_FLAGS), "rope_parameters": draw(_ropes())}
    return draw(_shapes()) | multipliers | own


@st.composite
def olmo2(draw: st.DrawFn) -> Config:
    return draw(_shapes()) | {"attention_bias": draw(_FLAGS), "rope_parameters": draw(_ropes())}


@st.composite
def olmo3(draw: st.DrawFn) -> Config:
    shape = draw(_shapes())
    ropes = {FULL: draw(_ropes()), SLIDING: draw(_ropes())}
    windows = draw(_windows(shape["num_hidden_layers"]))
    return shape | windows | {"attention_bias": draw(_FLAGS), "rope_parameters": ropes}


@st.composite
def smollm3(draw: st.DrawFn) -> Config:
    shape = draw(_shapes())
    layers = shape["num_hidden_layers"]
    turning = st.none() | st.lists(st.integers(0, 1), min_size=layers, max_size=layers)
    own = {
        "no_rope_layers": draw(turning), "no_rope_layer_interval": draw(st.integers(1, 4)),
        "attention_bias": draw(_FLAGS), "rope_parameters": draw(_ropes()),
    }  # fmt: skip
    slides = draw(_windows(layers)) | {"use_sliding_window": True} if draw(_FLAGS) else {}
    return shape | own | slides


@st.composite
def glm(draw: st.DrawFn) -> Config:
    shape = draw(_shapes())
    pairs = draw(st.integers(1, shape["head_dim"] // 2))
    part = (2 * pairs + 0.5) / shape["head_dim"] if 2 * pairs < shape["head_dim"] else 1.0
    rope = {"rope_type": "default", "rope_theta": draw(_THETAS), "partial_rotary_factor": part}
    return shape | {"attention_bias": draw(_FLAGS), "rope_parameters": rope}


@st.composite
def cohere2(draw: st.DrawFn) -> Config:
    shape = draw(_shapes(square=True))
    own = {
        "attention_bias": draw(_FLAGS), "rope_parameters": draw(_ropes()),
        "logit_scale": draw(_SCALES), "layer_norm_eps": shape.pop("rms_norm_eps"),
    }  # fmt: skip
    return shape | draw(_windows(shape["num_hidden_layers"])) | own


@st.composite
def exaone4(draw: st.DrawFn) -> Config:
    shape = draw(_shapes())
    windows = draw(_windows(shape["num_hidden_layers"]))
    if draw(_FLAGS):
        kinds = [FULL] * shape["num_hidden_layers"]
        windows = {"layer_types": kinds, "sliding_window": None, "sliding_window_pattern": None}
    return shape | windows | {"rope_parameters": draw(_ropes())}


@st.composite
def _experts(draw: st.DrawFn, most: int = 12) -> Config:
    count = draw(st.integers(1, most))
    return {"num_local_experts": count, "num_experts_per_tok": draw(st.integers(1, count))}


@st.composite
def mixtral(draw: st.DrawFn) -> Config:
    own = {"sliding_window": draw(st.none() | st.integers(1, 40)), "rope_parameters": draw(_ropes())}
    return draw(_shapes()) | draw(_experts()) | own


@st.composite
def qwen3_moe(draw: st.DrawFn) -> Config:
    shape = draw(_shapes())
    layers = st.integers(0, shape["num_hidden_layers"] - 1)
    own = {
        "moe_intermediate_size": draw(st.integers(8, 40)), "norm_topk_prob": draw(_FLAGS),
        "decoder_sparse_step": draw(st.integers(1, 2)), "mlp_only_layers": draw(st.lists(layers, max_size=2)),
        "attention_bias": draw(_FLAGS), "rope_parameters": draw(_ropes()),
    }  # fmt: skip
    slides = {"use_sliding_window": True, "sliding_window": draw(st.integers(1, 40))} if draw(_FLAGS) else {}
    return shape | draw(_experts()) | own | slides


@st.composite
def qwen3_5(draw: st.DrawFn) -> Config:
    """At least one layer attends; heads of states are as wide as blocks of few numbers can hold."""
    shape = draw(_shapes())
    head_dim, layers = shape["head_dim"], shape["num_hidden_layers"]
    pairs = draw(st.integers(1, head_dim // 2))
    part = (2 * pairs + 0.5) / head_dim if 2 * pairs < head_dim else 1.0
    kinds = draw(st.lists(st.sampled_from([FULL, LINEAR]), min_size=layers, max_size=layers))
    kinds[draw(st.integers(0, layers - 1))] = FULL
    keys = draw(st.integers(1, 3))
    return shape | {
        "layer_types": kinds,
        "linear_num_key_heads": keys, "linear_num_value_heads": keys * draw(st.integers(1, 3)),
        "linear_key_head_dim": draw(st.integers(1, 24)),
        "linear_value_head_dim": draw(st.integers(1, min(24, 2 * head_dim))),
        "linear_conv_kernel_dim": draw(st.integers(2, 5)),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": draw(_THETAS), "partial_rotary_factor": part,
        },
    }  # fmt: skip


@st.composite
def _shared(draw: st.DrawFn) -> Config:
    count = draw(st.integers(1, 12))
    return {
        "num_experts": count, "num_experts_per_tok": draw(st.integers(1, count)),
        "moe_intermediate_size": draw(st.integers(8, 40)),
        "shared_expert_intermediate_size": draw(st.integers(8, 40)),
    }  # fmt: skip


@st.composite
def qwen3_5_moe(draw: st.DrawFn) -> Config:
    shape = draw(qwen3_5())
    del shape["intermediate_size"]
    return shape | draw(_shared())


@st.composite
def qwen3_next(draw: st.DrawFn) -> Config:
    shape = draw(qwen3_5())
    layers = st.integers(0, shape["num_hidden_layers"] - 1)
    own = {
        "norm_topk_prob": draw(_FLAGS), "decoder_sparse_step": draw(st.integers(1, 2)),
        "mlp_only_layers": draw(st.lists(layers, max_size=2)),
    }  # fmt: skip
    return shape | draw(_shared()) | own


@st.composite
def olmoe(draw: st.DrawFn) -> Config:
    own = {"norm_topk_prob": draw(_FLAGS), "rope_parameters": draw(_ropes())}
    return draw(_shapes(square=True)) | draw(_experts()) | own


@st.composite
def gpt_oss(draw: st.DrawFn) -> Config:
    shape = draw(_shapes())
    rope = draw(_ropes())
    if rope["rope_type"] == "yarn":
        rope["truncate"] = draw(_FLAGS)
    own = {
        "swiglu_alpha": draw(st.floats(0.5, 3.0)), "swiglu_limit": draw(st.floats(0.1, 9.0)),
        "attention_bias": draw(_FLAGS), "rope_parameters": rope,
    }  # fmt: skip
    return shape | draw(_windows(shape["num_hidden_layers"])) | draw(_experts()) | own


_PROPORTIONAL = st.fixed_dictionaries(
    {
        "rope_type": st.just("proportional"), "rope_theta": _THETAS, "factor": st.floats(1.0, 8.0),
        "partial_rotary_factor": st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    }
)  # fmt: skip


@st.composite
def gemma4(draw: st.DrawFn) -> Config:
    """Heads that see everything are as wide as the others, or half or twice as wide."""
    shape = draw(_shapes())
    layers, head_dim = shape["num_hidden_layers"], shape["head_dim"]
    widths = [head_dim, 2 * head_dim, *([head_dim // 2] if head_dim % 4 == 0 else [])]
    windows = draw(_windows(layers))
    kinds = windows["layer_types"] = [*windows["layer_types"][:-1], FULL]
    inputs = draw(st.sampled_from([0, 1, 8, 19]))
    # transformers 5.24 cannot compute layers that share without inputs of layers.
    shared = [n for n in range(layers) if set(kinds[: layers - n]) == set(kinds) and (inputs or not n)]
    own = {
        "global_head_dim": draw(st.sampled_from(widths)),
        "num_kv_shared_layers": draw(st.sampled_from(shared)),
        "use_double_wide_mlp": draw(_FLAGS), "attention_k_eq_v": draw(_FLAGS),
        "num_global_key_value_heads": draw(st.sampled_from([None, 1])),
        "final_logit_softcapping": draw(st.none() | st.floats(0.5, 30.0)),
        "hidden_size_per_layer_input": inputs,
        "vocab_size_per_layer_input": shape["vocab_size"] + draw(st.integers(0, 3)),
        "rope_parameters": {SLIDING: draw(_ropes()), FULL: draw(_PROPORTIONAL | _ropes())},
        "enable_moe_block": draw(_FLAGS),
    }  # fmt: skip
    experts = draw(_experts())
    own |= {
        "num_experts": experts["num_local_experts"], "top_k_experts": experts["num_experts_per_tok"],
        "moe_intermediate_size": draw(st.integers(8, 40)),
    }  # fmt: skip
    return shape | windows | own


DRAWN: dict[str, tuple[Make, Callable[[], st.SearchStrategy[Config]]]] = {
    "gemma2": (tiny_models.gemma2, gemma2),
    "gemma4": (tiny_models.gemma4, gemma4),
    "phi3": (tiny_models.phi3, phi3),
    "granite": (tiny_models.granite, granite),
    "olmo2": (tiny_models.olmo2, olmo2),
    "olmo3": (tiny_models.olmo3, olmo3),
    "smollm3": (tiny_models.smollm3, smollm3),
    "glm": (tiny_models.glm, glm),
    "glm4": (tiny_models.glm4, glm),
    "cohere2": (tiny_models.cohere2, cohere2),
    "exaone4": (tiny_models.exaone4, exaone4),
    "mixtral": (tiny_models.mixtral, mixtral),
    "qwen3_moe": (tiny_models.qwen3_moe, qwen3_moe),
    "olmoe": (tiny_models.olmoe, olmoe),
    "gpt_oss": (tiny_models.gpt_oss, gpt_oss),
    "qwen3_5": (tiny_models.qwen3_5, qwen3_5),
    "qwen3_5_moe": (tiny_models.qwen3_5_moe, qwen3_5_moe),
    "qwen3_next": (tiny_models.qwen3_next, qwen3_next),
}
