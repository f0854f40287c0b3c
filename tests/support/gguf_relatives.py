"""Tiny GGUF files of Llama's relatives with a byte-level tokenizer, as llama.cpp's converter has them: what
it turns, fuses and names otherwise is in each writer."""

import json
import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import (
    Cohere2Config,
    Cohere2ForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

from support.gguf_files import (
    GEMMA_NAMES,
    LLAMA_NAMES,
    Alter,
    Tiny,
    add,
    add_numbers,
    finish,
    gguf_name,
    permute,
    smollm_tokenizer,
)
from support.gguf_grids import placed

Kind = gguf.GGMLQuantizationType
THETA = 5000.0
SHAPE: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "max_position_embeddings": 256, "initializer_range": 0.2, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
WIDE = {"hidden_size": 256, "intermediate_size": 256}  # for blocks of 256
DEFAULT = {"rope_type": "default", "rope_theta": THETA}
SMALL = SHAPE | {"rope_parameters": DEFAULT}
FUSED_NAMES = LLAMA_NAMES | {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
GLM_NAMES = FUSED_NAMES | {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_mlp_layernorm": "post_ffw_norm",
}


def write_bytelevel(
    path: Path, quantisation: Kind, alter: Alter | None, writer: gguf.GGUFWriter, model: Any,
    parts: dict[str, str], *, pre: str, pairs: bool = False,
) -> Tiny:  # fmt: skip
    """``pairs``: rows of q and k lie as llama.cpp turns them for Llama's relatives."""
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):
            parameter.data = torch.randint(-32, 64, parameter.shape) / 64
    tokenizer, config, model = smollm_tokenizer(), model.config, placed(model, quantisation)
    eps = getattr(config, "rms_norm_eps", None)
    add_numbers(
        writer, context=256, hidden=config.hidden_size, layers=config.num_hidden_layers,
        inner=config.intermediate_size, heads=4, kv_heads=config.num_key_value_heads, eps=eps, theta=THETA,
    )  # fmt: skip
    if eps is None:
        writer.add_layer_norm_eps(config.layer_norm_eps)
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(vocab)
    writer.add_token_types([3] * 3 + [1] * (len(vocab) - 3))
    writer.add_token_merges([" ".join(p) for p in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    heads = {"q_proj": 4, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        value, part = tensor.numpy(), name.split(".")[-2]
        if pairs and part in heads:
            value = permute(value, heads[part])
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            add(writer, gguf_name(name, parts), value, quantisation)
    return finish(writer, path, alter, Tiny(path, model, tokenizer))


def write_granite(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    torch.manual_seed(5)
    config = GraniteConfig(
        **SMALL, num_hidden_layers=2, num_key_value_heads=2, embedding_multiplier=12.0, logits_scaling=8.0,
        attention_multiplier=0.0625, residual_multiplier=0.25, tie_word_embeddings=True,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, "granite")
    writer.add_embedding_scale(12.0)
    writer.add_attention_scale(0.0625)
    writer.add_residual_scale(0.25)
    writer.add_logit_scale(8.0)
    model = GraniteForCausalLM(config)
    return write_bytelevel(path, quantisation, alter, writer, model, LLAMA_NAMES, pre="refact", pairs=True)


def write_smollm3(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    """The fourth layer does not turn."""
    torch.manual_seed(6)
    config = SmolLM3Config(**SMALL, num_hidden_layers=4, num_key_value_heads=2)
    writer, model = gguf.GGUFWriter(path, "smollm3"), SmolLM3ForCausalLM(config)
    return write_bytelevel(path, quantisation, alter, writer, model, LLAMA_NAMES, pre="smaug-bpe", pairs=True)


def write_olmo2(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    torch.manual_seed(7)
    model = Olmo2ForCausalLM(Olmo2Config(**SMALL, num_hidden_layers=2))
    writer = gguf.GGUFWriter(path, "olmo2")
    return write_bytelevel(path, quantisation, alter, writer, model, GEMMA_NAMES, pre="dbrx")


def write_olmo3(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    """Has OLMo 2's name; the layer that sees everything has a rope of its own."""
    torch.manual_seed(17)
    full = {
        "rope_type": "yarn", "rope_theta": THETA, "factor": 4.0, "attention_factor": 1.25,
        "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    ropes = {"full_attention": full, "sliding_attention": dict(DEFAULT)}
    config = Olmo3Config(
        **SHAPE, num_hidden_layers=4, num_key_value_heads=2, sliding_window=8, rope_parameters=ropes
    )
    writer = gguf.GGUFWriter(path, "olmo2")
    add_yarn(writer, full)
    writer.add_rope_scaling_yarn_attn_factor(1.25)
    writer.add_sliding_window(8)
    writer.add_sliding_window_pattern([True, True, True, False])
    model = Olmo3ForCausalLM(config)
    return write_bytelevel(path, quantisation, alter, writer, model, GEMMA_NAMES, pre="dbrx")


def add_yarn(writer: gguf.GGUFWriter, rope: dict[str, Any]) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
    writer.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])


def write_phi3(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    """As Phi-3 mini with 4k: a window, no LongRoPE, untied."""
    return _phi3(path, quantisation, alter, {}, sliding_window=8, original=256)


def write_phi3_long(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    """As Phi-4-mini: rope on three quarters of a head, LongRoPE (of two trained positions, so that every text
    is a long one), tied."""
    lists = {"long_factor": [1.5 + i for i in range(6)], "short_factor": [1.0 + i / 8 for i in range(6)]}
    rope = {"rope_type": "longrope", "partial_rotary_factor": 0.75, **lists}
    return _phi3(path, quantisation, alter, rope, original=2, tie_word_embeddings=True)


def _phi3(
    path: Path, quantisation: Kind, alter: Alter | None, rope: dict[str, Any], *, original: int, **more: Any
) -> Tiny:
    torch.manual_seed(13)
    wide = WIDE if quantisation == Kind.Q4_K else {}
    config = Phi3Config(
        **SHAPE | wide | more, num_hidden_layers=3, num_key_value_heads=2, rope_parameters=DEFAULT | rope,
        original_max_position_embeddings=original,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, "phi3")
    turned = config.hidden_size // 4 * rope.get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count(int(turned))
    writer.add_rope_scaling_orig_ctx_len(original)
    writer.add_sliding_window(config.sliding_window or 0)
    if "long_factor" in rope:
        stretch = 256 / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
        for length in ("long", "short"):
            factors = np.array(rope[f"{length}_factor"], dtype=np.float32)
            writer.add_tensor(f"rope_factors_{length}.weight", factors)
    model = Phi3ForCausalLM(config)
    return write_bytelevel(path, quantisation, alter, writer, model, FUSED_NAMES, pre="dbrx")


def write_glm4(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    """Half of a head turns, by neighbouring pairs, in both programs."""
    torch.manual_seed(14)
    rope, wide = DEFAULT | {"partial_rotary_factor": 0.5}, quantisation == Kind.Q4_K
    head_dim = 64 if wide else 16
    config = Glm4Config(
        **SHAPE | (WIDE if wide else {}), num_hidden_layers=2, num_key_value_heads=2, head_dim=head_dim,
        rope_parameters=rope,
    )  # fmt: skip
    writer = gguf.GGUFWriter(path, "glm4")
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim // 2)
    model = Glm4ForCausalLM(config)
    return write_bytelevel(path, quantisation, alter, writer, model, GLM_NAMES, pre="glm4")


def write_cohere2(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    """Three of four layers slide, and they alone turn."""
    torch.manual_seed(15)
    config = Cohere2Config(
        **SMALL, num_hidden_layers=4, num_key_value_heads=2, sliding_window=8, logit_scale=0.25
    )
    writer = gguf.GGUFWriter(path, "cohere2")
    writer.add_logit_scale(0.25)
    writer.add_sliding_window(8)
    writer.add_rope_dimension_count(16)
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    model = Cohere2ForCausalLM(config)
    return write_bytelevel(path, quantisation, alter, writer, model, LLAMA_NAMES, pre="command-r")


def write_exaone4(path: Path, quantisation: Kind, alter: Alter | None = None) -> Tiny:
    """As the 32B: layers slide but for every fourth, and Llama 3's scaling is a factor a pair."""
    torch.manual_seed(16)
    rope = {
        "rope_type": "llama3", "rope_theta": THETA, "factor": 16.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    }  # fmt: skip
    config = Exaone4Config(
        **SHAPE, num_hidden_layers=4, num_key_value_heads=2, sliding_window=8, rope_parameters=rope
    )
    writer, model = gguf.GGUFWriter(path, "exaone4"), Exaone4ForCausalLM(config)
    writer.add_sliding_window(8)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types or ()])
    plain = THETA ** -(np.arange(0, 16, 2, dtype=np.float32) / 16)
    factors = plain / model.model.rotary_emb.inv_freq.numpy()
    assert 1 < factors.max() < 16.01
    writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    return write_bytelevel(path, quantisation, alter, writer, model, GEMMA_NAMES, pre="exaone4")
