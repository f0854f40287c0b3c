"""A two-layer Llama with random weights, written in milliseconds: real files for tests of processes."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from muxd.models.spec import read_spec
from muxd.models.tensors import wanted

VOCAB = 320

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}


def tiny_llama(
    folder: Path, seed: int = 0, inner: int = 96, head_dim: int = 16, layers: int = 2, kv_heads: int = 2
) -> Path:
    """Write config.json and model.safetensors (float32) into ``folder``. ``inner``: width of the MLP."""
    q, kv = 4 * head_dim, kv_heads * head_dim
    draw = np.random.default_rng(seed)
    shapes = {"model.embed_tokens.weight": (VOCAB, 64), "model.norm.weight": (64,)}
    for layer in range(layers):
        part = f"model.layers.{layer}."
        for name, shape in {
            "self_attn.q_proj": (q, 64), "self_attn.k_proj": (kv, 64), "self_attn.v_proj": (kv, 64),
            "self_attn.o_proj": (64, q), "mlp.gate_proj": (inner, 64), "mlp.up_proj": (inner, 64),
            "mlp.down_proj": (64, inner), "input_layernorm": (64,), "post_attention_layernorm": (64,),
        }.items():  # fmt: skip
            shapes[f"{part}{name}.weight"] = shape
    tensors = {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    asked = {"intermediate_size": inner, "head_dim": head_dim}
    asked |= {"num_hidden_layers": layers, "num_key_value_heads": kv_heads}
    (folder / "config.json").write_text(json.dumps(CONFIG | asked))
    return folder


def tiny_served(folder: Path, seed: int = 0, inner: int = 96) -> Path:
    """The same with a tokenizer, so that a daemon can serve it."""
    return byte_tokenizer(tiny_llama(folder, seed, inner))


def byte_tokenizer(folder: Path) -> Path:
    """Write tokenizer.json: one token a byte, 259 in all."""
    specials = ["<unk>", "<s>", "</s>"]
    alphabet = [*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def tiny_keeping(folder: Path, seed: int = 0) -> Path:
    """A Qwen3.5 of four layers, three of which keep a state."""
    config = {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": VOCAB,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 1, "linear_num_value_heads": 2,
        "linear_key_head_dim": 8, "linear_value_head_dim": 8, "max_position_embeddings": 512,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "bfloat16",
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    draw = np.random.default_rng(seed)
    parts = {part.stored: part.whole for tensor in wanted(read_spec(folder)) for part in tensor.parts}
    tensors = {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in parts.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder
