"""Models of real shapes whose weights are random: what they say is nonsense, what they cost is not.

``Form.config`` writes what `muxd profile --random` needs; ``serve`` a whole folder that a daemon can serve.
"""

import json
from pathlib import Path

import torch
from msgspec import Struct
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from muxd.models.spec import read_spec
from muxd.models.tensors import wanted

_SPECIALS = ["<unk>", "<s>", "</s>"]


class Form(Struct, frozen=True):
    """Sizes of a Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocab: int = 32000
    positions: int = 4096
    head_dim: int = 0  # 0: hidden / heads

    @property
    def token_bytes(self) -> int:
        """K and V of a token, 2 bytes a number."""
        return 4 * self.layers * self.kv_heads * (self.head_dim or self.hidden // self.heads)

    def config(self, folder: Path) -> None:
        """Write config.json."""
        fields = {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim or self.hidden // self.heads,
            "intermediate_size": self.inner, "vocab_size": self.vocab, "hidden_act": "silu",
            "max_position_embeddings": self.positions, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(fields))


FORMS = {
    "llama-7b": Form(4096, 32, 32, 32, 11008),
    "llama-13b": Form(5120, 40, 40, 40, 13824),
    "llama-1b": Form(2048, 16, 32, 8, 8192),
    "qwen-0.5b": Form(896, 24, 14, 2, 4864),
    "tiny": Form(64, 2, 4, 2, 96, 320, 1024),  # to see that everything works, on any device
}


def serve(folder: Path, form: Form, seed: int = 0) -> Path:
    """config.json, model.safetensors (bfloat16) and a tokenizer: one token a byte, the rest never written."""
    form.config(folder)
    torch.manual_seed(seed)
    tensors = {
        part.stored: torch.empty(part.whole, dtype=torch.bfloat16).normal_(
            1.0 if len(part.shape) == 1 else 0.0, 0.02
        )
        for tensor in wanted(read_spec(folder))
        for part in tensor.parts
    }
    save_file(tensors, folder / "model.safetensors")
    symbols = [*_SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    symbols += [f"<{i}>" for i in range(form.vocab - len(symbols))]
    tokenizer = Tokenizer(models.BPE({symbol: i for i, symbol in enumerate(symbols)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_SPECIALS)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
