"""config.json in both layouts transformers has written, and every refusal by file and field."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_models import LLAMA3_ROPE, YARN_ROPE, gemma3, llama, mistral, qwen2, qwen3
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from muxd.errors import ConfigError, ModelFolderError
from muxd.models.rope import LinearScaling, Rope, YarnScaling
from muxd.models.spec import ModelSpec, read_spec

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 576, "vocab_size": 49152,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 1536,
    "max_position_embeddings": 2048, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "bos_token_id": 1,
    "tie_word_embeddings": True, "eos_token_id": 2, "head_dim": None, "rope_scaling": None,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 640,
    "vocab_size": 262144, "num_hidden_layers": 12, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 256, "intermediate_size": 2048, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
    "sliding_window": 512, "sliding_window_pattern": 6, "query_pre_attn_scalar": 256,
    "eos_token_id": [1, 106],
}  # fmt: skip
QWEN2: dict[str, Any] = LLAMA | {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "max_window_layers": 21,
    "sliding_window": 4096, "use_sliding_window": False,
}  # fmt: skip
QWEN3: dict[str, Any] = QWEN2 | {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}
del QWEN3["head_dim"]
MISTRAL: dict[str, Any] = LLAMA | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
YARN: dict[str, Any] = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}


def written(folder: Path, config: dict[str, Any], **changes: Any) -> Path:
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def test_old_llama_layout(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, LLAMA))
    assert (spec.layers, spec.heads, spec.kv_heads, spec.head_dim) == (30, 9, 3, 64)
    assert (spec.hidden_size, spec.intermediate_size, spec.vocab_size) == (576, 1536, 49152)
    assert (spec.max_positions, spec.norm_eps, spec.tied_embeddings) == (2048, 1e-5, True)
    assert spec.windows == (None,) * 30
    assert spec.attention_scale == pytest.approx(0.125)
    assert (spec.blocks_per_row, spec.bos_id, spec.eos_ids) == (90, 1, (2,))
    assert spec.tokens_per_row(8192, 2) == 32


def test_old_gemma_layout_has_a_full_layer_every_pattern(tmp_path: Path) -> None:
    spec = read_spec(written(tmp_path, GEMMA))
    assert spec.windows == ((512,) * 5 + (None,)) * 2
    assert (spec.rope.theta, spec.local_rope.theta) == (1e6, 1e4)
    assert spec.tied_embeddings
    assert spec.eos_ids == (1, 106)
    assert spec.tokens_per_row(8192, 2) == 8


@pytest.mark.parametrize("make", [llama, mistral, qwen2, qwen3, gemma3])
def test_what_this_transformers_saves_is_read_back(tmp_path: Path, make: Callable[..., Any]) -> None:
    config = make(tmp_path).config
    spec = read_spec(tmp_path)
    assert spec.layers == config.num_hidden_layers
    assert spec.max_positions == config.max_position_embeddings
    assert spec.tied_embeddings == config.tie_word_embeddings
    assert spec.eos_ids == (2,)
    if make is gemma3:
        assert spec.windows == (21, 21, None, 21)
        assert spec.attention_scale == pytest.approx(192**-0.5)
        assert spec.rope.theta == config.rope_parameters["full_attention"]["rope_theta"]
        assert spec.local_rope.theta == config.rope_parameters["sliding_attention"]["rope_theta"]


@pytest.mark.parametrize("qwen", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_layers_of_qwen_that_slide(tmp_path: Path, qwen: dict[str, Any]) -> None:
    """As transformers reads the same fields."""
    assert read_spec(written(tmp_path, qwen)).windows == (None,) * 30
    full, sliding = "full_attention", "sliding_attention"
    cases: list[tuple[dict[str, Any], list[int | None]]] = [
        ({}, [None] * 21 + [4096] * 9),
        ({"max_window_layers": 0, "sliding_window": 7}, [7] * 30),
        ({"sliding_window": None}, [None] * 30),
        ({"layer_types": [full, sliding] * 15, "sliding_window": 5}, [None, 5] * 15),
    ]
    for changes, late in cases:
        spec = read_spec(written(tmp_path, qwen, use_sliding_window=True, **changes))
        config = AutoConfig.from_pretrained(tmp_path)
        theirs = [config.sliding_window if kind == sliding else None for kind in config.layer_types]
        assert list(spec.windows) == theirs == late


def test_the_window_of_mistral(tmp_path: Path) -> None:
    """null is none; where the field is left out, transformers takes 4096."""
    cases: list[tuple[dict[str, Any], int | None]] = [
        ({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 7}, 7),
    ]  # fmt: skip
    for changes, window in cases:
        spec = read_spec(written(tmp_path, MISTRAL, **changes))
        assert spec.windows == (window,) * 30
        assert AutoConfig.from_pretrained(tmp_path).sliding_window == window


def test_biases(tmp_path: Path) -> None:
    def biases(config: dict[str, Any], **changes: Any) -> tuple[bool, bool]:
        spec = read_spec(written(tmp_path, config, **changes))
        return spec.qkv_bias, spec.o_bias

    assert biases(LLAMA) == (False, False)
    assert biases(LLAMA, attention_bias=True) == (True, True)
    assert biases(QWEN2) == (True, False)
    assert biases(QWEN3) == (False, False)
    assert biases(QWEN3, attention_bias=True) == (True, True)


def test_head_dim_that_is_not_given(tmp_path: Path) -> None:
    """The share of the hidden size; Qwen3's is 128 whatever the hidden size."""
    assert [read_spec(written(tmp_path, config)).head_dim for config in (LLAMA, QWEN2, QWEN3)] == [
        64,
        64,
        128,
    ]


def test_old_and_new_layout_mean_the_same(tmp_path: Path) -> None:
    scaling = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    old = read_spec(written(tmp_path, LLAMA, rope_theta=5e5, rope_scaling=scaling))
    new_rope = LLAMA3_ROPE | {"rope_theta": 5e5}
    config = {key: value for key, value in LLAMA.items() if not key.startswith("rope")}
    assert read_spec(written(tmp_path, config, rope_parameters=new_rope)) == old
    kinds = (["sliding_attention"] * 5 + ["full_attention"]) * 2
    gemma = read_spec(written(tmp_path, GEMMA))
    ropes = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = {key: value for key, value in GEMMA.items() if "rope" not in key and "pattern" not in key}
    assert read_spec(written(tmp_path, config, rope_parameters=ropes, layer_types=kinds)) == gemma


@pytest.mark.parametrize("named", ["rope_type", "type"])
def test_a_rope_scaling_beside_rope_parameters_rules(tmp_path: Path, named: str) -> None:
    """As transformers reads the pair; only that the base in rope_parameters is not forgotten."""
    parameters = {"rope_type": "default", "rope_theta": 1e6}
    both = {"rope_parameters": parameters, "rope_scaling": {named: "linear", "factor": 4.0}}
    config = {key: value for key, value in QWEN3.items() if not key.startswith("rope")}
    rope = read_spec(written(tmp_path, config, **both)).rope
    assert rope == Rope(1e6, LinearScaling(4.0))
    for more in ({"rope_theta": 5e5}, {"rope_scaling": both["rope_scaling"] | {"rope_theta": 7e5}}):
        rope = read_spec(written(tmp_path, config, **both | more)).rope
        theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters
        assert (rope.theta, rope.scaling) == (theirs["rope_theta"], LinearScaling(theirs["factor"]))
    assert read_spec(
        written(tmp_path, config, rope_parameters={"rope_type": "default"}, rope_theta=3e5)
    ).rope == (Rope(3e5))


@pytest.mark.parametrize("named", ["rope_type", "type"])
def test_a_rope_scaling_of_gemma_is_of_the_layers_that_see_everything(tmp_path: Path, named: str) -> None:
    ropes = {
        "full_attention": {"rope_type": "default", "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 2e4},
    }
    config = {key: value for key, value in GEMMA.items() if "rope" not in key}
    scaling = {named: "linear", "factor": 8.0}
    spec = read_spec(written(tmp_path, config, rope_parameters=ropes, rope_scaling=scaling))
    assert (spec.rope, spec.local_rope) == (Rope(2e6, LinearScaling(8.0)), Rope(2e4))
    if named == "rope_type":
        theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters
        assert theirs["full_attention"] == {"rope_type": "linear", "rope_theta": 2e6, "factor": 8.0}


def test_yarn_that_leaves_out_the_trained_context(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0}
    spec = read_spec(written(tmp_path, QWEN2, rope_scaling=yarn))
    theirs = AutoConfig.from_pretrained(tmp_path).rope_parameters
    assert isinstance(spec.rope.scaling, YarnScaling)
    assert spec.rope.scaling.original_positions == theirs["original_max_position_embeddings"] == 2048


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 10_000.0},
        {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 3.0},
        LLAMA3_ROPE,
        YARN_ROPE,
        YARN_ROPE | {"beta_fast": 4.0, "beta_slow": 0.5, "attention_factor": 1.5},
        YARN_ROPE | {"rope_theta": 1e6, "original_max_position_embeddings": 32_768},
        YARN_ROPE | {"factor": 1.0, "original_max_position_embeddings": 3},
        {
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "original_max_position_embeddings": 64,
            "long_factor": [1.0 + i / 3 for i in range(32)],
            "short_factor": [1.0 + i / 3 for i in range(32)],
            "attention_factor": 1.25,
        },
    ],
)
def test_frequencies_and_magnitude_are_transformers_own(tmp_path: Path, rope: dict[str, Any]) -> None:
    model = llama(tmp_path, rope_parameters=rope)
    wanted, magnitude = model.model.rotary_emb.inv_freq, 1.0
    if rope["rope_type"] != "default":
        wanted, magnitude = ROPE_INIT_FUNCTIONS[rope["rope_type"]](model.config, "cpu")
    found = read_spec(tmp_path).rope
    torch.testing.assert_close(torch.from_numpy(found.inverse_frequencies(64)), wanted, atol=0, rtol=1e-6)
    assert found.magnitude == pytest.approx(magnitude, rel=1e-12)


def test_yarn_as_qwens_model_cards_add_it(tmp_path: Path) -> None:
    """max_position_embeddings stays what it was trained with."""
    config = QWEN2 | {"max_position_embeddings": 32_768}
    assert read_spec(written(tmp_path, config)).max_positions == 32_768
    assert read_spec(written(tmp_path, config, rope_scaling=YARN)).max_positions == 131_072


WRAPPED: dict[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "eos_token_id": [1, 106],
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "eos_token_id": 5,
    },
    "vision_config": {"model_type": "siglip_vision_model"},
}  # fmt: skip


def test_the_text_part_of_a_model_that_also_sees(tmp_path: Path) -> None:
    """Gemma 3 4B's own file, which leaves most fields to transformers' defaults."""
    spec = read_spec(written(tmp_path, WRAPPED))
    theirs = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert spec.architecture == "Gemma3ForCausalLM"
    assert spec.wrapped
    assert spec.eos_ids == (1, 5, 106), "of both"
    assert (spec.vocab_size, spec.heads, spec.kv_heads, spec.head_dim, spec.max_positions) == (
        theirs.vocab_size, theirs.num_attention_heads, theirs.num_key_value_heads, theirs.head_dim,
        theirs.max_position_embeddings,
    )  # fmt: skip
    assert (spec.rope, spec.local_rope) == (Rope(1e6, LinearScaling(8.0)), Rope(1e4))
    assert spec.windows == ((1024,) * 5 + (None,)) * 5 + (1024,) * 4
    assert spec.tied_embeddings
    assert not read_spec(written(tmp_path, WRAPPED, tie_word_embeddings=False)).tied_embeddings
    assert read_spec(written(tmp_path, WRAPPED, architectures=None)) == spec


def test_architecture_may_come_from_model_type(tmp_path: Path) -> None:
    assert read_spec(written(tmp_path, LLAMA, architectures=None)).architecture == "LlamaForCausalLM"


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "unknown": (LLAMA, {"architectures": ["MambaForCausalLM"]}, "known: BertModel, Cohere2ForCausalLM, Exa"),
    "type": (LLAMA, {"hidden_size": "576"}, "hidden_size must be a whole number of at least 1, not '576'"),
    "bool": (LLAMA, {"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
    "missing": (LLAMA, {"intermediate_size": None}, "intermediate_size is missing"),
    "zero": (LLAMA, {"num_key_value_heads": 0}, "num_key_value_heads must be a whole number of at least 1"),
    "groups": (LLAMA, {"num_key_value_heads": 2}, "num_attention_heads 9 is not a multiple"),
    "odd": (LLAMA, {"head_dim": 63}, "head_dim 63 is odd"),
    "uneven": (LLAMA, {"hidden_size": 577}, "hidden_size 577 is not a multiple"),
    "bias": (LLAMA, {"mlp_bias": True}, "mlp_bias = true is not supported"),
    "part": (LLAMA, {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5 is not supported"),
    "part of a rope": (
        LLAMA,
        {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.25}},
        "partial_rotary_factor = 0.25 is not supported",
    ),
    "no bias": (QWEN2, {"attention_bias": False}, "attention_bias = false is not supported; only true is"),
    "no heads": (QWEN2, {"num_key_value_heads": None}, "num_key_value_heads is missing"),
    "no window": (QWEN2, {"layer_types": ["sliding_attention"] * 30}, "layer_types names sliding_attention"),
    "mixed": (MISTRAL, {"layer_types": ["full_attention"] * 30}, "layer_types must be sliding_attention"),
    "mistral bias": (MISTRAL, {"attention_bias": True}, "attention_bias = true is not supported"),
    "late": (
        QWEN2,
        {"use_sliding_window": True, "max_window_layers": -1},
        "max_window_layers must be a whole number of at least 0",
    ),
    "act": (LLAMA, {"hidden_act": "relu"}, 'hidden_act = "relu" is not supported; only "silu" is'),
    "eps": (LLAMA, {"rms_norm_eps": -1}, "rms_norm_eps must be a number above 0"),
    "eos": (LLAMA, {"eos_token_id": "</s>"}, "eos_token_id must be a token id or a list"),
    "dynamic": (
        LLAMA,
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "'dynamic' is not supported; supported: \"default\", \"linear\", \"llama3\", \"yarn\"",
    ),
    "factors": (
        LLAMA,
        {
            "rope_scaling": {
                "type": "longrope", "long_factor": [2.0], "short_factor": [2.0], "attention_factor": 1.0,
            }
        },
        "long_factor does not list 32 factors",
    ),
    "rope of layers": (
        LLAMA,
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        "rope_parameters.full_attention is a rope of one kind of layer",
    ),
    "base": (LLAMA, {"rope_theta": 1.0}, "rope_theta must be above 1"),
    "layers": (LLAMA, {"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 4096, not 1000000000"),
    "more layers": (LLAMA, {"num_hidden_layers": 10**18}, "num_hidden_layers must be at most 4096"),
    "positions": (LLAMA, {"max_position_embeddings": 10**18}, "max_position_embeddings must be at most"),
    "large": (LLAMA, {"rms_norm_eps": 10**400}, "rms_norm_eps must be a number above 0, not 1000000"),
    "no text": (GEMMA, {"architectures": ["Gemma3ForConditionalGeneration"]}, "text_config is missing"),
    "other text": (
        GEMMA,
        {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "text_config": {"model_type": "ministral3"},
        },
        'text_config.model_type = "ministral3" is not supported; only "mistral" is',
    ),
    "yarn": (LLAMA, {"rope_scaling": YARN | {"factor": 0.5}}, "rope_scaling.factor must be at least 1"),
    "mscale": (LLAMA, {"rope_scaling": YARN | {"mscale": 0.7}}, "rope_scaling.mscale = 0.7 is not supported"),
    "turns": (LLAMA, {"rope_scaling": YARN | {"beta_fast": 1}}, "beta_fast must be above beta_slow"),
    "factor": (LLAMA, {"rope_scaling": {"rope_type": "llama3"}}, "rope_scaling.factor is missing"),
    "table": (LLAMA, {"rope_parameters": 5}, "rope_parameters must be an object"),
    "tie": (LLAMA, {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    "kinds": (GEMMA, {"layer_types": ["full_attention"]}, "layer_types must list 12 times"),
    "kind": (GEMMA, {"layer_types": ["chunked"] * 12}, "one of full_attention, sliding_attention"),
    "window": (GEMMA, {"sliding_window": 0}, "sliding_window must be a whole number"),
    "both ways": (GEMMA, {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
    "score cap": (GEMMA, {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0 is not supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_file_and_field(tmp_path: Path, case: str) -> None:
    config, changes, reason = REFUSED[case]
    with pytest.raises(ModelFolderError) as caught:
        read_spec(written(tmp_path, config, **changes))
    assert str(tmp_path / "config.json") in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "is missing"),
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ("\x80", "JSON"),
        ('{"a": ' * 100_000, "is nested too deeply"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is not valid JSON: Exceeds the limit"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "is a Git LFS pointer"),
        (" " * (65 << 20), "is larger than"),
    ],
    ids=["none", "cut", "list", "no text", "deep", "digits", "pointer", "large"],
)
def test_unreadable_config(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelFolderError, match=reason):
        read_spec(tmp_path)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path, no_descriptor_leak: None) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ModelFolderError, match=r"config\.json cannot be read: it is a pipe or a device"):
        read_spec(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(ModelFolderError, match="it is a pipe or a device"):
        read_spec(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    with pytest.raises(ModelFolderError, match="it is a folder"):
        read_spec(tmp_path)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="not a folder"):
        read_spec(tmp_path / "nowhere")


def test_a_block_too_small_for_one_token_names_the_setting(tmp_path: Path) -> None:
    spec: ModelSpec = read_spec(written(tmp_path, GEMMA))
    with pytest.raises(ConfigError, match=r"pool\.block_bytes: 1024 .* at least 2048"):
        spec.tokens_per_row(1024, 4)


@pytest.mark.parametrize("module", ["spec", "weights", "tensors", "rope", "convert"])
def test_the_deciding_side_loads_no_torch(module: str) -> None:
    code = f"import sys, muxd.models.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
