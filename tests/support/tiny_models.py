"""Small random models of every architecture, saved as transformers saves them, with their reference."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    Cohere2Config,
    Cohere2ForCausalLM,
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    Olmo3Config,
    Olmo3ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5Config,
    Qwen3_5ForCausalLM,
    Qwen3_5ForConditionalGeneration,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
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
        elif name.endswith(("bias", "sinks")):
            torch.nn.init.normal_(weight, std=0.5)
    model.save_pretrained(folder, **options)
    model.eval()
    if hasattr(model.config, "num_experts_per_tok"):
        model.set_experts_implementation("eager")  # another one wants widths that its products are made for
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


def qwen3_5(folder: Path, **changes: Any) -> PreTrainedModel:
    """Qwen3.5's proportions in small: three of four layers keep a state, whose heads are twice as many as
    keys'; a quarter of a head turns."""
    torch.manual_seed(17)
    own = {"intermediate_size": 136, "tie_word_embeddings": True}
    return save(Qwen3_5ForCausalLM(Qwen3_5TextConfig(**COMMON | _STATES | own | changes)), folder)


def qwen3_5_that_sees(folder: Path, **changes: Any) -> PreTrainedModel:
    """As it is published."""
    torch.manual_seed(18)
    text = COMMON | _STATES | {"intermediate_size": 136} | changes
    sees = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 96}
    config = Qwen3_5Config(text_config=text, vision_config=sees | {"num_position_embeddings": 16})
    return save(Qwen3_5ForConditionalGeneration(config), folder)


def qwen3_5_moe(folder: Path, **changes: Any) -> PreTrainedModel:
    """Qwen3.5 35B-A3B's proportions in small: an expert that is shared beside many narrow ones."""
    torch.manual_seed(19)
    return save(Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**COMMON | _STATES | _SHARED | changes)), folder)


def qwen3_next(folder: Path, **changes: Any) -> PreTrainedModel:
    """Qwen3-Next's proportions in small: matrices stored by key head."""
    torch.manual_seed(20)
    own = _SHARED | {"intermediate_size": 136}
    return save(Qwen3NextForCausalLM(Qwen3NextConfig(**COMMON | _STATES | own | changes)), folder)


_STATES = {
    "vocab_size": 323, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512, "linear_num_key_heads": 2,
    "linear_num_value_heads": 4, "linear_key_head_dim": 48, "linear_value_head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25},
}  # fmt: skip
_SHARED = {
    "num_experts": 12, "num_experts_per_tok": 3, "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}  # fmt: skip


def olmoe(folder: Path, **changes: Any) -> PreTrainedModel:
    """OLMoE's proportions in small: norms over all heads, no grouped queries."""
    torch.manual_seed(9)
    shape = {
        "vocab_size": 315, "hidden_size": 80, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512,
        "num_experts": 8, "num_experts_per_tok": 3,
    }  # fmt: skip
    return save(OlmoeForCausalLM(OlmoeConfig(**COMMON | shape | changes)), folder)


def gpt_oss(folder: Path, **changes: Any) -> PreTrainedModel:
    """gpt-oss 20b's proportions in small: 8 query heads to a KV head, sinks, every other layer slides."""
    torch.manual_seed(10)
    rope = YARN_ROPE | {"truncate": False, "rope_theta": 150_000.0, "original_max_position_embeddings": 128}
    shape = {
        "vocab_size": 325, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512,
        "num_local_experts": 6, "num_experts_per_tok": 2, "sliding_window": 21, "rope_parameters": rope,
    }  # fmt: skip
    return save(GptOssForCausalLM(GptOssConfig(**COMMON | shape | changes)), folder)


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


FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"


def gemma2(folder: Path, **changes: Any) -> PreTrainedModel:
    """Gemma 2 2B's proportions in small: soft caps that numbers reach, every second layer slides."""
    torch.manual_seed(7)
    shape = {
        "vocab_size": 311, "hidden_size": 72, "intermediate_size": 136, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
        "sliding_window": 21, "query_pre_attn_scalar": 24, "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
    }  # fmt: skip
    return save(Gemma2ForCausalLM(Gemma2Config(**COMMON | shape | changes)), folder)


def gemma4(folder: Path, **changes: Any) -> PreTrainedModel:
    """Gemma 4 E2B's proportions in small: heads of two sizes, the last layers read earlier ones' keys and
    values and have MLPs twice as wide, every layer an input of its own."""
    torch.manual_seed(17)
    shape = {
        "vocab_size": 313, "hidden_size": 80, "intermediate_size": 72, "num_hidden_layers": 7,
        "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 32, "global_head_dim": 64,
        "max_position_embeddings": 512, "sliding_window": 21, "final_logit_softcapping": 5.0,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, SLIDING, FULL], "num_kv_shared_layers": 3,
        "use_double_wide_mlp": True, "hidden_size_per_layer_input": 24, "vocab_size_per_layer_input": 313,
    }  # fmt: skip
    model = Gemma4ForCausalLM(Gemma4TextConfig(**COMMON | shape | changes))
    return save(uneven(model), folder)


def uneven(model: PreTrainedModel) -> PreTrainedModel:
    """Numbers that a fresh Gemma 4 has all one. Scores are not scaled, so queries are made short: else every
    head sees one token alone, and rounding is amplified from layer to layer."""
    for name, number in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith(("layer_scalar", "router.scale", "router.per_expert_scale")):
            torch.nn.init.uniform_(number.data, 0.5, 1.5)
        elif name.endswith("q_norm.weight"):
            number.data.fill_(number.shape[0] ** -0.5)
    model.set_experts_implementation("eager")
    return model


# Of ``gemma4``: 26B-A4B's proportions in small.
GEMMA4_EXPERTS: dict[str, Any] = {
    "num_hidden_layers": 4, "layer_types": [SLIDING, SLIDING, SLIDING, FULL], "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False, "hidden_size_per_layer_input": 0, "num_key_value_heads": 2,
    "num_global_key_value_heads": 1, "attention_k_eq_v": True, "enable_moe_block": True, "num_experts": 6,
    "top_k_experts": 2, "moe_intermediate_size": 40,
}  # fmt: skip


def phi3(folder: Path, **changes: Any) -> PreTrainedModel:
    """Phi-4-mini's proportions in small: fused matrices, rope on three quarters of a head."""
    torch.manual_seed(8)
    shape = {
        "vocab_size": 317, "hidden_size": 96, "intermediate_size": 168, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "partial_rotary_factor": 0.75,
    }  # fmt: skip
    return save(Phi3ForCausalLM(Phi3Config(**COMMON | shape | changes)), folder)


def long_phi3(original: int) -> dict[str, Any]:
    """Changes of ``phi3``: LongRoPE over so many trained positions."""
    lists = {"short_factor": [1.0 + i / 9 for i in range(6)], "long_factor": [1.5 + i for i in range(6)]}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75, **lists}
    more = {"original_max_position_embeddings": original}
    return {"rope_parameters": rope | more, **more}


def granite(folder: Path, **changes: Any) -> PreTrainedModel:
    """Granite 3.3 2B's proportions in small, and its multipliers."""
    torch.manual_seed(9)
    shape = {
        "vocab_size": 305, "hidden_size": 96, "intermediate_size": 152, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "embedding_multiplier": 12.0, "attention_multiplier": 0.0625, "residual_multiplier": 0.22,
        "logits_scaling": 8.0, "tie_word_embeddings": True,
    }  # fmt: skip
    return save(GraniteForCausalLM(GraniteConfig(**COMMON | shape | changes)), folder)


def olmo2(folder: Path, **changes: Any) -> PreTrainedModel:
    """OLMo 2 1B's proportions in small: as many KV heads as heads."""
    torch.manual_seed(10)
    shape = {
        "vocab_size": 303, "hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 3,
        "num_attention_heads": 4, "max_position_embeddings": 512,
    }  # fmt: skip
    return save(Olmo2ForCausalLM(Olmo2Config(**COMMON | shape | changes)), folder)


def olmo3(folder: Path, **changes: Any) -> PreTrainedModel:
    """OLMo 3's proportions in small: three of four layers slide, and the other one's rope is stretched."""
    torch.manual_seed(11)
    shape = {
        "vocab_size": 303, "hidden_size": 80, "intermediate_size": 144, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "sliding_window": 21,
        "rope_parameters": {FULL: YARN_ROPE, SLIDING: {"rope_type": "default", "rope_theta": 1e4}},
    }  # fmt: skip
    return save(Olmo3ForCausalLM(Olmo3Config(**COMMON | shape | changes)), folder)


def smollm3(folder: Path, **changes: Any) -> PreTrainedModel:
    """SmolLM3's proportions in small: every fourth layer does not turn."""
    torch.manual_seed(12)
    shape = {
        "vocab_size": 301, "hidden_size": 96, "intermediate_size": 144, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 1, "max_position_embeddings": 512,
    }  # fmt: skip
    return save(SmolLM3ForCausalLM(SmolLM3Config(**COMMON | shape | changes)), folder)


def glm(folder: Path, **changes: Any) -> PreTrainedModel:
    """GLM-4 9B of 2024 in small: half of a head turns, interleaved; biases; gate and up fused."""
    torch.manual_seed(13)
    return save(GlmForCausalLM(GlmConfig(**COMMON | _GLM | changes)), folder)


def glm4(folder: Path, **changes: Any) -> PreTrainedModel:
    """GLM-4-0414 9B in small: with norms around each block."""
    torch.manual_seed(14)
    return save(Glm4ForCausalLM(Glm4Config(**COMMON | _GLM | changes)), folder)


_GLM = {
    "vocab_size": 319, "hidden_size": 96, "intermediate_size": 152, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "max_position_embeddings": 512,
}  # fmt: skip


def cohere2(folder: Path, **changes: Any) -> PreTrainedModel:
    """Command R7B's proportions in small: three of four layers slide, and they alone turn."""
    torch.manual_seed(15)
    shape = {
        "vocab_size": 307, "hidden_size": 96, "intermediate_size": 176, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "sliding_window": 21, "logit_scale": 0.25,
    }  # fmt: skip
    return save(Cohere2ForCausalLM(Cohere2Config(**COMMON | shape | changes)), folder)


def exaone4(folder: Path, **changes: Any) -> PreTrainedModel:
    """EXAONE 4 32B's proportions in small: three of four layers slide, and they alone turn."""
    torch.manual_seed(16)
    shape = {
        "vocab_size": 309, "hidden_size": 80, "intermediate_size": 168, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "sliding_window": 21, "sliding_window_pattern": 4,
    }  # fmt: skip
    return save(Exaone4ForCausalLM(Exaone4Config(**COMMON | shape | changes)), folder)


def bert(folder: Path, **changes: Any) -> PreTrainedModel:
    """all-MiniLM-L6's proportions in small: head_dim 32, an encoder without a head."""
    torch.manual_seed(6)
    shape = {
        "vocab_size": 323, "hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3,
        "num_attention_heads": 3, "max_position_embeddings": 512, "pad_token_id": 0,
    }  # fmt: skip
    return save(BertModel(BertConfig(**shape | changes)), folder)


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
    "gemma2": (gemma2, {}),
    "gemma4": (gemma4, {}),
    "cohere2": (cohere2, {}),
    "qwen3 moe, some layers dense, weights not made one": (
        qwen3_moe,
        {"norm_topk_prob": False, "mlp_only_layers": [0], "decoder_sparse_step": 2, "attention_bias": True},
    ),
    "gpt oss, clamped often": (gpt_oss, {"swiglu_limit": 0.3, "swiglu_alpha": 3.0}),
}
# Whose layers keep a state.
STATES: dict[str, tuple[Make, dict[str, Any]]] = {
    "qwen3.5": (qwen3_5, {}),
    "qwen3.5 untied, one key head each": (
        qwen3_5,
        {
            "tie_word_embeddings": False,
            "linear_num_key_heads": 3,
            "linear_num_value_heads": 3,
            "linear_conv_kernel_dim": 2,
            "layer_types": [LINEAR, FULL, FULL, LINEAR],
        },
    ),
    "qwen3.5 that sees": (qwen3_5_that_sees, {}),
    "qwen3.5 moe": (qwen3_5_moe, {}),
    "qwen3 next, some layers dense": (qwen3_next, {"mlp_only_layers": [1], "norm_topk_prob": False}),
}
# In `make test` drawn configurations stand for these (``drawn_models``).
RELATIVES: dict[str, tuple[Make, dict[str, Any]]] = {
    "phi3": (phi3, {}),
    "phi3 longrope": (phi3, long_phi3(2)),
    "granite": (granite, {}),
    "olmo2": (olmo2, {}),
    "olmo3": (olmo3, {}),
    "smollm3": (smollm3, {}),
    "glm": (glm, {}),
    "glm4": (glm4, {}),
    "exaone4": (exaone4, {}),
    "mixtral window, tied": (mixtral, {"sliding_window": 21, "tie_word_embeddings": True}),
    "olmoe": (olmoe, {}),
    "gemma4 experts, keys as values": (gemma4, GEMMA4_EXPERTS),
}


def quick(variants: Iterable[str]) -> list[Any]:
    """Parameters of a test: relatives are left to `make test-all`."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in RELATIVES else name for name in variants]
