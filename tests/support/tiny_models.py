"""Small random models of every architecture, saved as transformers saves them, with their reference."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

COMMON: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "use_cache": True}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}


def save(model: PreTrainedModel, folder: Path, **options: Any) -> PreTrainedModel:
    """Norm weights and biases are made to matter: fresh models have them all one (or zero)."""
    for name, weight in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(weight, mean=float(weight.detach().mean()), std=0.3)
        elif weight.dim() > 1:  # matrices, also those of all experts in one
            torch.nn.init.normal_(weight, std=0.08)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder, **options)
    model.eval()
    return model


def llama(folder: Path, **changes: Any) -> PreTrainedModel:
    """SmolLM2's proportions in small: 3 query heads to a KV head, head_dim 64."""
    torch.manual_seed(1)
    shape = {
        "vocab_size": 331, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": True,
    }  # fmt: skip
    return save(LlamaForCausalLM(LlamaConfig(**COMMON | shape | changes)), folder)


def qwen2(folder: Path, **changes: Any) -> PreTrainedModel:
    """Qwen2.5 0.5B's proportions in small: 7 query heads to a KV head, biases, tied embeddings."""
    torch.manual_seed(3)
    shape = {
        "vocab_size": 319, "hidden_size": 112, "intermediate_size": 144, "num_hidden_layers": 4,
        "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return save(Qwen2ForCausalLM(Qwen2Config(**COMMON | shape | changes)), folder)


def qwen3(folder: Path, **changes: Any) -> PreTrainedModel:
    """Qwen3 0.6B's proportions in small: 2 query heads to a KV head, together wider than the model."""
    torch.manual_seed(4)
    shape = {
        "vocab_size": 313, "hidden_size": 88, "intermediate_size": 136, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }  # fmt: skip
    return save(Qwen3ForCausalLM(Qwen3Config(**COMMON | shape | changes)), folder)


def mistral(folder: Path, **changes: Any) -> PreTrainedModel:
    """Mistral 7B's proportions in small: 4 query heads to a KV head, every layer with a window."""
    torch.manual_seed(5)
    shape = {
        "vocab_size": 309, "hidden_size": 128, "intermediate_size": 152, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "sliding_window": 21,
    }  # fmt: skip
    return save(MistralForCausalLM(MistralConfig(**COMMON | shape | changes)), folder)


def mixtral(folder: Path, **changes: Any) -> PreTrainedModel:
    """Mixtral's proportions in small: 2 of 5 experts, 3 query heads to a KV head."""
    torch.manual_seed(7)
    shape = {
        "vocab_size": 311, "hidden_size": 72, "intermediate_size": 104, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "num_local_experts": 5, "num_experts_per_tok": 2,
    }  # fmt: skip
    return save(MixtralForCausalLM(MixtralConfig(**COMMON | shape | changes)), folder)


def qwen3_moe(folder: Path, **changes: Any) -> PreTrainedModel:
    """Qwen3 30B-A3B's proportions in small: many narrow experts, most of which few tokens choose."""
    torch.manual_seed(8)
    shape = {
        "vocab_size": 317, "hidden_size": 64, "intermediate_size": 136, "moe_intermediate_size": 24,
        "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48,
        "max_position_embeddings": 512, "num_experts": 16, "num_experts_per_tok": 4, "norm_topk_prob": True,
    }  # fmt: skip
    return save(Qwen3MoeForCausalLM(Qwen3MoeConfig(**COMMON | shape | changes)), folder)


def gemma3(folder: Path, **changes: Any) -> PreTrainedModel:
    """Gemma 3 270M's proportions in small: one KV head, head_dim 256, mostly sliding layers."""
    torch.manual_seed(2)
    shape = {
        "vocab_size": 307, "hidden_size": 80, "intermediate_size": 144, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "max_position_embeddings": 512,
        "sliding_window": 21, "query_pre_attn_scalar": 192,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    }  # fmt: skip
    return save(Gemma3ForCausalLM(Gemma3TextConfig(**COMMON | shape | changes)), folder)


def bert(folder: Path, **changes: Any) -> PreTrainedModel:
    """all-MiniLM-L6's proportions in small: head_dim 32, an encoder without a head."""
    torch.manual_seed(6)
    shape = {
        "vocab_size": 323, "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3,
        "num_attention_heads": 3, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip
    return save(BertModel(BertConfig(**shape | changes)), folder)


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """float32 [len(tokens), vocab], no cache."""
    logits: torch.Tensor = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    return logits


def continuation_logits(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The reference's logits at every position where one of ``tokens`` was chosen: [len(tokens), vocab]."""
    return reference_logits(model, prompt + tokens)[len(prompt) - 1 : -1]


def greedy_choices(model: PreTrainedModel, prompt: list[int], tokens: list[int]) -> list[int]:
    """What the reference chooses at each step of that continuation.

    Equal to ``tokens`` exactly when its own greedy decoding gives ``tokens``, by induction over the steps.
    """
    choices: list[int] = continuation_logits(model, prompt, tokens).argmax(-1).tolist()
    return choices


def words(length: int, seed: int = 0) -> list[int]:
    """A prompt; the same for the same arguments."""
    return random.Random(seed * 1000 + length).choices(range(3, 300), k=length)


Make = Callable[..., PreTrainedModel]
# What every way of computing is compared over; a test adds its own.
VARIANTS: dict[str, tuple[Make, dict[str, Any]]] = {
    "llama": (llama, {}),
    "llama llama3 rope": (llama, {"rope_parameters": LLAMA3_ROPE}),
    "llama biases": (llama, {"attention_bias": True}),
    "qwen2": (qwen2, {}),
    "qwen2 untied, late layers slide": (
        qwen2,
        {
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": 21,
            "max_window_layers": 2,
        },
    ),
    "qwen2 yarn rope": (qwen2, {"rope_parameters": YARN_ROPE}),
    "qwen3": (qwen3, {}),
    "qwen3 untied, biases": (
        qwen3,
        {"tie_word_embeddings": False, "attention_bias": True, "head_dim": 24, "num_key_value_heads": 1},
    ),
    "mistral": (mistral, {}),
    "mistral no window, head_dim not hidden / heads": (mistral, {"sliding_window": None, "head_dim": 40}),
    "gemma3": (gemma3, {}),
    "mixtral": (mixtral, {}),
    "mixtral window": (mixtral, {"sliding_window": 21, "tie_word_embeddings": True}),
    "qwen3 moe": (qwen3_moe, {}),
    "qwen3 moe, some layers dense, weights not made one": (
        qwen3_moe,
        {"norm_topk_prob": False, "mlp_only_layers": [0], "decoder_sparse_step": 2, "attention_bias": True},
    ),
}
