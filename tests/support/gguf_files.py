"""Tiny GGUF files written here as llama.cpp's converter writes them, from models that transformers made.

The originals are the truth: an import must give them back.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from support.gguf_grids import quantised

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The dog sleeps, 12345 times over.",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Ein schöner Tag in Köln, naïve café, señor; 日本語のテキスト и русский текст.",
] * 4
CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"

Alter = Callable[[gguf.GGUFWriter], None]


@dataclass
class Tiny:
    """A GGUF file, the model it was made from and its tokenizer."""

    path: Path
    model: Any
    tokenizer: tokenizers.Tokenizer


def smollm_tokenizer() -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    return inner


def sentencepiece_vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and types as in Gemma: control, user-defined, bytes, merges by rank, letters."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    trained.train_from_iterator(CORPUS, trainer)
    model = json.loads(trained.to_str())["model"]
    merged = ["".join(pair) for pair in model["merges"]]
    letters = [token for token in model["vocab"] if token not in merged]
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>"]
    own = ["\n", "\n\n", "  ", "   ", "<table>"]
    raw = [f"<0x{byte:02X}>" for byte in range(256)]
    normal = [token for token in dict.fromkeys([*merged, *letters]) if token not in own]
    tokens = [*special, *own, *raw, *normal]
    tokens += [f"<unused{i}>" for i in range(-len(tokens) % 32)]
    kinds = [3] * 5 + [4] * 5 + [6] * 256 + [1] * len(normal)
    scores = [-1000.0] * 10 + [0.0] * 256 + [-float(rank) for rank in range(len(normal))]
    spare = len(tokens) - len(kinds)
    return tokens, scores + [-1000.0] * spare, kinds + [3] * spare


def permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k of llama models."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)


LLAMA_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GEMMA_NAMES = LLAMA_NAMES | {
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip


QWEN_NAMES = LLAMA_NAMES | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def gguf_name(name: str, parts: dict[str, str]) -> str:
    fixed = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    fixed["lm_head.weight"] = "output.weight"
    if name in fixed:
        return fixed[name]
    rest, _, kind = name.rpartition(".")
    _, _, layer, part = rest.split(".", 3)
    return f"blk.{layer}.{parts[part]}.{kind}"


def rounded(model: Any) -> Any:
    """Parameters that bfloat16 holds exactly; the rope table, a buffer, stays as it is."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model.eval()


def write_llama(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = smollm_tokenizer()
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=384, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, tie_word_embeddings=True,
    )  # fmt: skip
    model = rounded(LlamaForCausalLM(config))
    writer = gguf.GGUFWriter(path, "llama")
    add_numbers(
        writer, context=256, hidden=64, layers=2, inner=96, heads=4, kv_heads=2, eps=1e-5, theta=5000.0
    )
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(vocab)
    writer.add_token_types([3] * 3 + [1] * (len(vocab) - 3))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(CHAT)
    for name, tensor in model.state_dict().items():
        value = tensor.numpy()
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            value = permute(value, heads) if part in name else value
        if name != "lm_head.weight":
            add(writer, gguf_name(name, LLAMA_NAMES), value, quantisation)
    return finish(writer, path, alter, Tiny(path, model, tokenizer))


def qwen_tokenizer() -> tokenizers.Tokenizer:
    """As transformers builds it around a trained vocabulary."""
    from transformers import Qwen2Tokenizer

    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=384, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=special,
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(CORPUS, trainer)
    merges = [tuple(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]
    made = Qwen2Tokenizer(
        vocab=inner.get_vocab(),
        merges=merges,  # type: ignore[arg-type]
        additional_special_tokens=special,
    )
    return made.backend_tokenizer


def add_qwen_vocabulary(writer: gguf.GGUFWriter, tokenizer: tokenizers.Tokenizer) -> None:
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(vocab)
    writer.add_token_types([3] * 3 + [1] * (len(vocab) - 3))
    writer.add_token_merges([" ".join(p) for p in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)


def write_qwen2(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return write_qwen(path, quantisation, alter, "qwen2", Qwen2ForCausalLM, Qwen2Config, {})


def write_qwen3(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    """Untied, heads wider than the model."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    more = {"head_dim": 32, "tie_word_embeddings": False}
    return write_qwen(path, quantisation, alter, "qwen3", Qwen3ForCausalLM, Qwen3Config, more)


def write_qwen(
    path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None, name: str, make: Any,
    config: Any, more: dict[str, Any],
) -> Tiny:  # fmt: skip
    import torch

    tokenizer = qwen_tokenizer()
    torch.manual_seed(3)
    shape = {
        "vocab_size": 384, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "initializer_range": 0.2, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    }  # fmt: skip
    model = make(config(**shape | more))
    for part, parameter in model.named_parameters():
        if part.endswith(("norm.weight", "bias")):
            parameter.data = torch.randint(-32, 64, parameter.shape) / 64
    model = rounded(model)
    writer = gguf.GGUFWriter(path, name)
    add_numbers(
        writer, context=256, hidden=64, layers=2, inner=96, heads=4, kv_heads=2, eps=1e-6, theta=5000.0
    )
    if "head_dim" in more:
        writer.add_key_length(more["head_dim"])
        writer.add_value_length(more["head_dim"])
    add_qwen_vocabulary(writer, tokenizer)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT)
    for part, tensor in model.state_dict().items():
        if part != "lm_head.weight" or not model.config.tie_word_embeddings:
            add(writer, gguf_name(part, QWEN_NAMES), tensor.numpy(), quantisation)
    return finish(writer, path, alter, Tiny(path, model, tokenizer))


GEMMA: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 7, "head_dim": 32,
    "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 256, "sliding_window": 8,
    "query_pre_attn_scalar": 32, "initializer_range": 0.2,
}  # fmt: skip


def write_gemma2(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(8)
    size = len(sentencepiece_vocabulary()[0])
    caps: dict[str, Any] = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}
    model, writer = (
        Gemma2ForCausalLM(Gemma2Config(vocab_size=size, **GEMMA, **caps)),
        gguf.GGUFWriter(path, "gemma2"),
    )
    writer.add_attn_logit_softcapping(2.0)
    writer.add_final_logit_softcapping(3.0)
    return write_sentencepiece(path, quantisation, alter, writer, model, theta=1e4)


def write_gemma(path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None = None) -> Tiny:
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    torch.manual_seed(2)
    size = len(sentencepiece_vocabulary()[0])
    model = Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=size, **GEMMA))
    return write_sentencepiece(path, quantisation, alter, gguf.GGUFWriter(path, "gemma3"), model, theta=1e6)


def write_sentencepiece(
    path: Path, quantisation: gguf.GGMLQuantizationType, alter: Alter | None, writer: gguf.GGUFWriter,
    model: Any, *, theta: float,
) -> Tiny:  # fmt: skip
    import torch

    tokens, scores, kinds = sentencepiece_vocabulary()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data = torch.randint(-32, 64, parameter.shape) / 64
    model = rounded(model)
    add_numbers(
        writer, context=256, hidden=64, layers=7, inner=96, heads=2, kv_heads=1, eps=1e-6, theta=theta
    )
    writer.add_key_length(32)
    writer.add_sliding_window(8)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    writer.add_unk_token_id(3)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    for name, tensor in model.state_dict().items():
        value = tensor.numpy() + (1 if name.endswith("norm.weight") else 0)
        if name != "lm_head.weight":
            add(writer, gguf_name(name, GEMMA_NAMES), value, quantisation)
    return finish(writer, path, alter, Tiny(path, model, tokenizers.Tokenizer(models.BPE())))


def add_numbers(
    writer: gguf.GGUFWriter, *, context: int, hidden: int, layers: int, inner: int, heads: int, kv_heads: int,
    eps: float | None, theta: float,
) -> None:  # fmt: skip
    writer.add_context_length(context)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    if eps is not None:  # else it is a LayerNorm
        writer.add_layer_norm_rms_eps(eps)
    writer.add_rope_freq_base(theta)


def add(writer: gguf.GGUFWriter, name: str, value: np.ndarray, kind: gguf.GGMLQuantizationType) -> None:
    kind = kind if value.ndim > 1 else gguf.GGMLQuantizationType.F32  # llama.cpp keeps vectors in float32
    value = np.ascontiguousarray(value, dtype=np.float32)
    writer.add_tensor(name, quantised(value, kind), raw_dtype=kind)


def finish(writer: gguf.GGUFWriter, path: Path, alter: Alter | None, tiny: Tiny) -> Tiny:
    if alter:
        alter(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tiny
