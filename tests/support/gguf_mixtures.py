"""Tiny GGUF files of mixtures of experts: all of a layer in one tensor a matrix, as llama.cpp has them."""

from pathlib import Path
from typing import Any

import gguf
import torch
from transformers import (
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from support.gguf_files import (
    LLAMA_NAMES,
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
from support.gguf_grids import placed
from support.gguf_relatives import add_yarn

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


GPT_OSS_NAMES = LLAMA_NAMES | {"post_attention_layernorm": "post_attention_norm"}
YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0,
    "truncate": False, "original_max_position_embeddings": 64,
}  # fmt: skip


def write_gpt_oss(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    """Of MXFP4 experts alone, as it is published; what is beside them is Q8_0 then."""
    torch.manual_seed(18)
    config = GptOssConfig(
        **SHAPE | {"head_dim": 32, "num_hidden_layers": 4, "rope_parameters": YARN},
        num_local_experts=EXPERTS, intermediate_size=INNER, sliding_window=8, pad_token_id=0, bos_token_id=1,
        eos_token_id=2,
    )  # fmt: skip
    model: Any = GptOssForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias", "sinks")):
            parameter.data = torch.randint(-32, 64, parameter.shape) / 64
        elif parameter.dim() == 3:
            torch.nn.init.normal_(parameter, std=0.2)
    mxfp4 = quantisation == gguf.GGMLQuantizationType.MXFP4
    kind = gguf.GGMLQuantizationType.Q8_0 if mxfp4 else quantisation
    model, tokenizer = placed(model, kind, quantisation), qwen_tokenizer()
    writer = gguf.GGUFWriter(path, "gpt-oss")
    add_numbers(
        writer, context=256, hidden=64, layers=4, inner=INNER, heads=4, kv_heads=2, eps=1e-5, theta=5000.0
    )
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_feed_forward_length(INNER)
    writer.add_sliding_window(8)
    add_yarn(writer, YARN)
    add_qwen_vocabulary(writer, tokenizer)
    writer.kv_data[0]["tokenizer.ggml.pre"].value = "gpt-4o"
    for name, tensor in model.state_dict().items():
        _add_gpt_oss(writer, name, tensor, kind, quantisation)
    return finish(writer, path, alter, Tiny(path, model, tokenizer))


def _add_gpt_oss(
    writer: gguf.GGUFWriter, name: str, tensor: torch.Tensor, kind: gguf.GGMLQuantizationType,
    experts: gguf.GGMLQuantizationType,
) -> None:  # fmt: skip
    """Gates and ups, whose rows take turns, apart, outputs first; biases and routers in float32."""
    plain = gguf.GGMLQuantizationType.F32
    block, end = ".".join(name.split(".")[1:3]).replace("layers", "blk"), name.rpartition(".")[2]
    if end in ("gate_up_proj", "down_proj"):
        rows = tensor.transpose(1, 2).numpy()
        parts = {"gate": rows[:, ::2], "up": rows[:, 1::2]} if end == "gate_up_proj" else {"down": rows}
        for part, value in parts.items():
            add(writer, f"{block}.ffn_{part}_exps.weight", value, experts)
    elif end in ("gate_up_proj_bias", "down_proj_bias"):
        rows = tensor.numpy()
        parts = {"gate": rows[:, ::2], "up": rows[:, 1::2]} if end == "gate_up_proj_bias" else {"down": rows}
        for part, value in parts.items():
            add(writer, f"{block}.ffn_{part}_exps.bias", value, plain)
    elif ".router." in name:
        add(writer, f"{block}.ffn_gate_inp.{end}", tensor.numpy(), plain)
    elif end == "sinks":
        add(writer, f"{block}.attn_sinks.weight", tensor.numpy(), plain)
    else:
        add(writer, gguf_name(name, GPT_OSS_NAMES), tensor.numpy(), kind)
