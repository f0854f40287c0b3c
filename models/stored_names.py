"""What tensors are called in a model's files, and which of them muxd does not read.

A text model's tensors have other names where it is part of a model that also sees, or is made for a task.
Read by the weight plan and by adapters (daemon).
"""

import re

from muxd.models.model_spec import ModelSpec
from muxd.models.tensors import HEAD

_KEYS_AND_VALUES = re.compile(r"model\.layers\.(\d{1,9})\.self_attn\.(?:k_proj|v_proj|k_norm|v_norm)\.weight")
# Of a model that sees or hears, and reads: names of what does not read begin so, of some architectures more,
_SIGHT = ("vision_tower", "vision_model", "multi_modal_projector", "visual")
_MORE = {"Gemma4ForCausalLM": ("audio_tower", "embed_vision", "embed_audio")}
# and of what reads, before transformers 4.52 and since.
_PREFIXES = {
    "language_model.model.": "model.",
    "language_model.lm_head.": "lm_head.",
    "model.language_model.": "model.",
}


def reads(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor belongs to what reads in a model that also sees or hears."""
    parts = (*_SIGHT, *_MORE.get(spec.architecture, ()))
    return not name.removeprefix("model.").startswith(tuple(f"{part}." for part in parts))


def headed(name: str) -> str:
    """The name that a decoder's tensor has where it is saved with its head around it."""
    bare = name.startswith(("layers.", "embed_tokens.", "norm."))
    return f"model.{name}" if bare else name


def unbert(name: str) -> str:
    """Without the prefix that it has inside a model for a task."""
    return name.removeprefix("bert.")


def unwrapped(name: str) -> str:
    """The name of a text model's tensor without the prefix it has inside a model that also sees."""
    for prefix, plain in _PREFIXES.items():
        if name.startswith(prefix):
            return plain + name.removeprefix(prefix)
    return name


def harmless(name: str, spec: ModelSpec) -> bool:
    """Stored tensors that change nothing when left out: derived buffers, the copy of a tied head, and what
    would make keys and values of a layer that reads an earlier one's."""
    if spec.encoder:  # what is made of it for other tasks
        return name.startswith(("pooler.", "cls.")) or name == "embeddings.position_ids"
    if spec.delta is not None and name.startswith("mtp."):  # predicts several tokens at once: it is not asked
        return True
    if name.endswith(".rotary_emb.inv_freq") or (spec.tied_embeddings and name == HEAD):
        return True
    found = _KEYS_AND_VALUES.fullmatch(name)
    layer = int(found[1]) if found else spec.layers
    return layer < spec.layers and spec.rows_of(layer).kv_heads > 0 and not spec.rows_of(layer).own
