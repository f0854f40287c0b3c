"""config.json of each family as transformers reads it, and what of it is refused, by the field's name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_models
from support.tiny_models import long_phi3, phi3
from transformers import AutoConfig

from muxd.errors import ModelFolderError
from muxd.models.families.table import FAMILIES, HEADLESS, WRAPPERS
from muxd.models.registry import ARCHITECTURES
from muxd.models.rope import STILL, FactorScaling, LongScaling, Rope, YarnScaling
from muxd.models.spec import ModelSpec, read_spec
from muxd.models.tensors import wanted
from muxd.models.weights import plan

SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "num_hidden_layers": 8, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 96, "eos_token_id": 2, "bos_token_id": 1,
}  # fmt: skip
MADE: dict[str, Callable[..., Any]] = {
    name: getattr(tiny_models, name)
    for name in (
        "gemma2", "phi3", "granite", "olmo2", "olmo3", "smollm3", "glm", "glm4", "cohere2", "exaone4",
        "mixtral", "qwen3_moe", "olmoe", "gpt_oss",
    )
}  # fmt: skip


def of_type(folder: Path, model_type: str, **changes: Any) -> ModelSpec:
    (folder / "config.json").write_text(json.dumps(SMALL | {"model_type": model_type} | changes))
    return read_spec(folder)


def theirs(folder: Path) -> Any:
    return AutoConfig.from_pretrained(folder)


def test_every_known_architecture_has_a_page_and_every_other_name_leads_to_one() -> None:
    assert FAMILIES.keys() == ARCHITECTURES.keys()
    assert {one.architecture for one in WRAPPERS.values()} | set(HEADLESS.values()) <= FAMILIES.keys()
    types = [one.model_type for one in FAMILIES.values()] + [one.model_type for one in WRAPPERS.values()]
    assert len(set(types)) == len(types)


@pytest.mark.parametrize("made", MADE)
def test_what_this_transformers_saves_is_read_back(tmp_path: Path, made: str) -> None:
    """Also without the name of the architecture; and the region has a place for every number."""
    config = MADE[made](tmp_path).config
    spec = read_spec(tmp_path)
    assert spec.architecture == config.architectures[0]
    assert (spec.layers, spec.heads, spec.kv_heads) == (
        config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads,
    )  # fmt: skip
    assert (spec.max_positions, spec.tied_embeddings) == (512, config.tie_word_embeddings)
    if kinds := getattr(config, "layer_types", None):
        slides = [kind == "sliding_attention" for kind in kinds]
        assert [window is not None for window in spec.windows] == slides
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"architectures": None}))
    assert read_spec(tmp_path) == spec
    assert plan(tmp_path, spec, "float32").bytes


@pytest.mark.parametrize("model_type", ["gemma2", "olmo3", "cohere2", "exaone4", "smollm3"])
def test_windows_of_a_file_that_leaves_them_to_defaults(tmp_path: Path, model_type: str) -> None:
    for changes in ({}, {"sliding_window": 7}):
        spec = of_type(tmp_path, model_type, **changes)
        config = theirs(tmp_path)
        pairs = zip(config.layer_types, (config.sliding_window,) * 8, strict=True)
        assert list(spec.windows) == [window if kind[0] == "s" else None for kind, window in pairs]


def test_gemma_2_has_caps_unless_they_are_null(tmp_path: Path) -> None:
    spec = of_type(tmp_path, "gemma2")
    assert (spec.attention_softcap, spec.logit_softcap, spec.head_dim) == (50.0, 30.0, 256)
    assert (spec.attention_scale, spec.embed_scale, spec.tied_embeddings) == (1 / 16, 8.0, True)
    spec = of_type(tmp_path, "gemma2", attn_logit_softcapping=None, final_logit_softcapping=5.0)
    assert (spec.attention_softcap, spec.logit_softcap) == (None, 5.0)


def test_granites_multipliers(tmp_path: Path) -> None:
    names = ("embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling")
    spec = of_type(tmp_path, "granite", **dict(zip(names, (12.0, 0.0625, 0.22, 8.0), strict=True)))
    found = (spec.embed_scale, spec.attention_scale, spec.residual_scale, spec.logit_scale)
    assert found == (12.0, 0.0625, 0.22, 0.125)
    spec = of_type(tmp_path, "granite")
    assert (spec.embed_scale, spec.attention_scale, spec.residual_scale, spec.logit_scale) == (1.0,) * 4


def test_layers_that_do_not_turn(tmp_path: Path) -> None:
    def turning(model_type: str, **changes: Any) -> list[int]:
        spec = of_type(tmp_path, model_type, **changes)
        return [int(spec.rope_of(layer) != STILL) for layer in range(spec.layers)]

    assert turning("smollm3") == theirs(tmp_path).no_rope_layers == [1, 1, 1, 0] * 2
    assert turning("smollm3", no_rope_layers=[0, 1] * 5) == [0, 1] * 4
    assert turning("smollm3", no_rope_layer_interval=2) == theirs(tmp_path).no_rope_layers == [1, 0] * 4
    assert turning("cohere2") == turning("exaone4") == [1, 1, 1, 0] * 2
    kinds = {"layer_types": ["full_attention"] * 8}
    assert turning("exaone4", sliding_window=None, sliding_window_pattern=None, **kinds) == [1] * 8
    assert turning("exaone4", sliding_window=None) == [1] * 8
    assert turning("exaone4", **kinds) == turning("cohere2", **kinds) == [0] * 8
    assert turning("olmo2") == turning("phi3") == [1] * 8


def test_two_ropes_of_olmo_3(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
    spec = of_type(tmp_path, "olmo3", rope_scaling=scaling, rope_theta=500_000)
    assert isinstance(spec.rope.scaling, YarnScaling)
    assert spec.local_rope == Rope(500_000.0)
    read = theirs(tmp_path).rope_parameters
    assert read["sliding_attention"] == {"rope_type": "default", "rope_theta": 500_000}
    assert read["full_attention"]["factor"] == 8.0
    assert [spec.rope_of(layer) == spec.rope for layer in range(4)] == [False, False, False, True]


@pytest.mark.parametrize("made", ["phi3", "glm", "glm4", "cohere2"])
def test_the_order_of_rows_brings_pairs_together(tmp_path: Path, made: str) -> None:
    """Turning by (i, i + half) of what has been put in order is what transformers turns, in order."""
    model = MADE[made](tmp_path)
    spec = read_spec(tmp_path)
    head, rope, order = spec.head_dim, spec.local_rope, list(spec.head_order)
    x = torch.randn(1, 1, 5, head)
    cos, sin = model.model.rotary_emb(x, torch.arange(5)[None])
    turn = __import__(type(model).__module__, fromlist=["apply_rotary_pos_emb"]).apply_rotary_pos_emb
    wanted_x = turn(x, x, cos, sin)[0][0, 0][:, order]
    phase = torch.arange(5.0)[:, None] * torch.from_numpy(rope.inverse_frequencies(head))
    first, second = x[0, 0][:, order].chunk(2, -1)
    turned = first * phase.cos() - second * phase.sin(), second * phase.cos() + first * phase.sin()
    torch.testing.assert_close(torch.cat(turned, -1), wanted_x)
    ordered = {one.name: [bool(part.order) for part in one.parts] for one in wanted(spec)}
    assert ordered["layers.0.qkv"] == [True, True, False]
    assert not any(any(parts) for name, parts in ordered.items() if ".qkv" not in name)


def test_long_rope_takes_one_list_for_all_sequences(tmp_path: Path) -> None:
    """By the longest that is served; what of a head does not turn is not stretched."""
    model = phi3(tmp_path, **long_phi3(64))
    spec = read_spec(tmp_path)
    assert isinstance(spec.rope.scaling, LongScaling)
    rotary = model.model.rotary_emb
    for context, positions in ((64, 64), (65, 65), (512, 512)):
        rope = spec.within(context).rope
        assert isinstance(rope.scaling, FactorScaling)
        cos, _ = rotary(torch.zeros(1), torch.arange(positions)[None])
        phase = np.outer(np.arange(positions), rope.inverse_frequencies(16)[:6])
        np.testing.assert_allclose(cos[0, :, :6], np.cos(phase) * rope.magnitude, atol=1e-4)
        assert rope.inverse_frequencies(16)[6:].tolist() == [0.0, 0.0]
        assert rope.magnitudes(16).tolist() == [np.float32(rope.magnitude)] * 6 + [1.0, 1.0]
    assert spec.rope.magnitude == rotary.attention_scaling > 1


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_early_names_of_long_rope(tmp_path: Path, kind: str) -> None:
    lists = {"long_factor": [2.0] * 8, "short_factor": [1.0] * 8}
    more = {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
    spec = of_type(tmp_path, "phi3", rope_scaling={"type": kind, **lists}, **more)
    assert isinstance(spec.rope.scaling, LongScaling)
    assert spec.rope.scaling.original_positions == 1024
    assert spec.rope.magnitude == pytest.approx(1.2**0.5)


SLIDING = {"layer_types": ["sliding_attention"] * 8}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "part": ("phi3", {"partial_rotary_factor": 0.2}, "partial_rotary_factor turns 3 of 16 dimensions"),
    "more than a head": ("glm4", {"partial_rotary_factor": 2.0}, "turns 256 of 128 dimensions"),
    "part of llama": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not"),
    "part of a kind": (
        "olmo3",
        {"rope_parameters": {"sliding_attention": {"partial_rotary_factor": 0.5}}},
        "sliding_attention.partial_rotary_factor = 0.5 is not supported",
    ),
    "lists": (
        "phi3",
        {
            "rope_scaling": {"type": "longrope", "long_factor": [2.0] * 8, "short_factor": [1.0] * 7},
            "max_position_embeddings": 512,
        },
        "short_factor does not list 8 factors",
    ),
    "no list": (
        "phi3",
        {"rope_scaling": {"type": "longrope", "long_factor": [2.0] * 8}},
        "short_factor must list a number other than 0",
    ),
    "gelu": ("granite", {"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported'),
    "mlp bias": ("smollm3", {"mlp_bias": True}, "mlp_bias = true is not supported"),
    "layers": ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers must list 8 times"),
    "numbers": ("smollm3", {"no_rope_layers": [2] * 8}, "no_rope_layers must list 8 times"),
    "slides": ("smollm3", SLIDING, "layer_types names sliding_attention, but use_sliding_window"),
    "no window": ("olmo3", {"sliding_window": None}, "layer_types names sliding_attention, but"),
    "negative": ("granite", {"residual_multiplier": -0.2}, "residual_multiplier must be a number above 0"),
    "head": ("cohere2", {"head_dim": 32}, "head_dim = 32 is not supported; only 16 is"),
    "heads' norms": ("cohere2", {"use_qk_norm": True}, "use_qk_norm = true is not supported"),
    "in a row": ("cohere2", {"use_parallel_block": False}, "use_parallel_block = false is not supported"),
    "both ways": ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
    "pattern": ("exaone4", {"sliding_window_pattern": "LLLG"}, "sliding_window_pattern must be a whole"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_file_and_field(tmp_path: Path, case: str) -> None:
    model_type, changes, reason = REFUSED[case]
    with pytest.raises(ModelFolderError) as caught:
        of_type(tmp_path, model_type, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert reason in str(caught.value)


# ---- mixtures of experts ---------------------------------------------------------------------------------


def test_experts_by_the_names_and_defaults_of_transformers(tmp_path: Path) -> None:
    """Both names of their number, as transformers 4 and 5 write it, and what a file leaves out."""
    for model_type in ("mixtral", "qwen3_moe", "olmoe", "gpt_oss"):
        spec, config = of_type(tmp_path, model_type), theirs(tmp_path)
        found = spec.experts
        assert found is not None
        assert (found.count, found.chosen) == (config.num_local_experts, config.num_experts_per_tok)
        assert found.inner == getattr(config, "moe_intermediate_size", config.intermediate_size)
        assert found.normalised == getattr(config, "norm_topk_prob", True)
        assert (spec.rope.theta, spec.norm_eps) == (config.rope_parameters["rope_theta"], config.rms_norm_eps)
    for name in ("num_experts", "num_local_experts"):
        told = of_type(tmp_path, "qwen3_moe", **{name: 24}).experts
        assert told is not None
        assert told.count == theirs(tmp_path).num_experts == 24


def test_which_layers_have_experts(tmp_path: Path) -> None:
    spec = of_type(tmp_path, "qwen3_moe", decoder_sparse_step=3, mlp_only_layers=[5])
    assert spec.experts is not None
    assert [i for i, mixed in enumerate(spec.experts.layers) if mixed] == [2]
    assert [i for i in range(8) if spec.experts_of(i)] == [2]


def test_gpt_oss_slides_in_every_other_layer_and_its_rope_is_not_rounded(tmp_path: Path) -> None:
    spec, config = of_type(tmp_path, "gpt_oss"), theirs(tmp_path)
    slides = [kind == "sliding_attention" for kind in config.layer_types]
    assert [window == 128 for window in spec.windows] == slides
    assert isinstance(spec.rope.scaling, YarnScaling)
    assert not spec.rope.scaling.rounded
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    wanted, magnitude = ROPE_INIT_FUNCTIONS["yarn"](config, torch.device("cpu"))
    np.testing.assert_allclose(spec.rope.inverse_frequencies(spec.head_dim), wanted.numpy(), rtol=1e-6)
    assert float(spec.rope.magnitudes(spec.head_dim)[0]) == pytest.approx(magnitude)
    assert (spec.sinks, spec.qkv_bias, spec.o_bias) == (True, True, True)


@pytest.mark.parametrize(
    ("model_type", "changes", "told"),
    [
        ("mixtral", {"num_experts_per_tok": 9}, "num_experts_per_tok is 9, of 8 experts"),
        ("mixtral", {"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported'),
        (
            "qwen3_moe",
            {"num_experts": 4, "num_local_experts": 8},
            "num_experts and num_local_experts must be",
        ),
        ("qwen3_moe", {"mlp_only_layers": ["1"]}, "mlp_only_layers must be a list of layers"),
        ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be a whole number of at least 1"),
        ("qwen3_moe", {"num_experts": 10**9}, "num_experts must be at most"),
        ("olmoe", {"clip_qkv": 8.0}, "clip_qkv = 8.0 is not supported; only null is"),
        ("gpt_oss", {"swiglu_limit": 0}, "swiglu_limit must be a number above 0"),
        (
            "gpt_oss",
            {"quantization_config": {"quant_method": "mxfp4"}, "intermediate_size": 48},
            "intermediate_size must be a multiple of 32",
        ),
        ("gpt_oss", {"hidden_act": "relu"}, 'hidden_act = "relu" is not supported'),
    ],
)
def test_experts_that_are_not_computed_are_refused(
    tmp_path: Path, model_type: str, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ModelFolderError, match=told):
        of_type(tmp_path, model_type, **changes)
