"""Tiny GGUF files of mixtures of experts: all of a layer in one tensor a matrix, as llama.cpp has them."""

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from support.gguf_files import (
    QWEN_NAMES,
    Alter,
    Tiny,
    add,
    add_numbers,
    add_qwen_vocabulary,
    finish,
    gguf_name,
    permute,
    qwen_tokenizer,
    rounded,
)

EXPERTS, CHOSEN, INNER = 6, 2, 32
SHAPE: dict[str, Any] = {
    "vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256, "initializer_range": 0.2,
    "tie_word_embeddings": False, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    "num_experts_per_tok": CHOSEN,
}  # fmt: skip


def write_qwen3moe(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    torch.manual_seed(11)
    config = Qwen3MoeConfig(
        **SHAPE, num_experts=EXPERTS, moe_intermediate_size=INNER, intermediate_size=96, norm_topk_prob=True
    )
    writer = gguf.GGUFWriter(path, "qwen3moe")
    return _written(path, quantisation, alter, writer, rounded(Qwen3MoeForCausalLM(config)), inner=96)


def write_mixtral(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    torch.manual_seed(12)
    config = MixtralConfig(**SHAPE, num_local_experts=EXPERTS, intermediate_size=INNER, rms_norm_eps=1e-6)
    writer = gguf.GGUFWriter(path, "llama")
    return _written(path, quantisation, alter, writer, rounded(MixtralForCausalLM(config)), inner=INNER)


def _written(
    path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None, writer: gguf.GGUFWriter,
    model: Any, *, inner: int,
) -> Tiny:  # fmt: skip
    tokenizer = qwen_tokenizer()
    add_numbers(
        writer, context=256, hidden=64, layers=2, inner=inner, heads=4, kv_heads=2, eps=1e-6, theta=5000.0
    )
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_feed_forward_length(INNER)
    add_qwen_vocabulary(writer, tokenizer)
    turned = isinstance(model, MixtralForCausalLM)  # by neighbouring pairs
    for name, tensor in model.state_dict().items():
        value, block = tensor.numpy(), ".".join(name.split(".")[1:3]).replace("layers", "blk")
        if name.endswith("experts.gate_up_proj"):
            add(writer, f"{block}.ffn_gate_exps.weight", value[:, :INNER].copy(), quantisation)
            add(writer, f"{block}.ffn_up_exps.weight", value[:, INNER:].copy(), quantisation)
        elif name.endswith("experts.down_proj"):
            add(writer, f"{block}.ffn_down_exps.weight", value, quantisation)
        elif name.endswith("mlp.gate.weight"):
            add(writer, f"{block}.ffn_gate_inp.weight", value, gguf.GGMLQuantizationType.F32)
        else:
            for part, heads in (("q_proj", 4), ("k_proj", 2)):
                value = permute(value, heads) if turned and part in name else value
            add(writer, gguf_name(name, QWEN_NAMES), value, quantisation)
    return finish(writer, path, alter, Tiny(path, model, tokenizer))
