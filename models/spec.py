"""``config.json`` of a model folder, read as one frozen struct.

Everybody may use it: it imports no torch.
"""

from pathlib import Path

from msgspec import structs

from muxd.errors import ModelFolderError
from muxd.messages import ITEM_BYTES, Dtype
from muxd.models.config_file import Fields, shown
from muxd.models.families import READERS
from muxd.models.files import read_json
from muxd.models.folder import check_folder, refuse_quantised
from muxd.models.model_spec import ModelSpec, tokens_per_row
from muxd.models.rope import FactorScaling

__all__ = ["ModelSpec", "read_spec", "tokens_per_row"]

# Models that see and read -> what reads in them, and its ``model_type``.
_WRAPPERS = {
    "Gemma3ForConditionalGeneration": ("Gemma3ForCausalLM", "gemma3_text"),
    "Mistral3ForConditionalGeneration": ("MistralForCausalLM", "mistral"),
}
# Saved without a head, to be pooled.
_HEADLESS = {
    "LlamaModel": "LlamaForCausalLM",
    "MistralModel": "MistralForCausalLM",
    "Qwen2Model": "Qwen2ForCausalLM",
    "Qwen3Model": "Qwen3ForCausalLM",
}


def read_spec(folder: Path) -> ModelSpec:
    """Read ``config.json`` as transformers 4.x or 5.x writes it.

    Of a model that sees and reads (``text_config`` beside ``vision_config``) the part that reads. Raises
    ModelFolderError naming the file, the field and the reason.
    """
    path = folder / "config.json"
    check_folder(folder)
    outer = Fields(path, read_json(path))
    refuse_quantised(path, outer.raw)
    architecture = named = _architecture(outer)
    fields = outer
    if named in _HEADLESS:
        architecture = _HEADLESS[named]
    if named in _WRAPPERS:
        architecture, text_type = _WRAPPERS[named]
        fields = _text(outer, text_type)
    if architecture not in READERS:
        known = ", ".join(sorted(READERS.keys() | _WRAPPERS.keys()))
        raise ModelFolderError(f"{path}: architecture {shown(named)} is not known; known: {known}")
    fields.must_be("partial_rotary_factor", 1.0, default=1.0)
    ends = {*outer.ids("eos_token_id"), *fields.ids("eos_token_id")}
    spec = READERS[architecture](fields, tuple(sorted(ends)))
    spec = structs.replace(spec, wrapped=named in _WRAPPERS, dtype=_dtype(fields) or _dtype(outer))
    if named in _HEADLESS:
        spec = structs.replace(spec, headless=True, tied_embeddings=True)
    if spec.heads % spec.kv_heads:
        raise ModelFolderError(
            f"{path}: num_attention_heads {spec.heads} is not a multiple of "
            f"num_key_value_heads {spec.kv_heads}"
        )
    if spec.head_dim % 2:
        raise ModelFolderError(f"{path}: head_dim {spec.head_dim} is odd; rotary embedding needs pairs")
    for rope in (spec.rope, spec.local_rope):
        if isinstance(rope.scaling, FactorScaling) and 2 * len(rope.scaling.factors) != spec.head_dim:
            raise ModelFolderError(
                f"{path}: long_factor does not list {spec.head_dim // 2} factors, one a pair"
            )
        if not rope.finite(spec.head_dim):
            raise ModelFolderError(
                f"{path}: rope_theta and rope_scaling, or rope_parameters: angles that float32 cannot hold"
            )
    return spec


def _architecture(fields: Fields) -> str:
    named = fields.raw.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    by_type = {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "mixtral": "MixtralForCausalLM",
        "qwen3_moe": "Qwen3MoeForCausalLM",
        "bert": "BertModel",
        "gemma3_text": "Gemma3ForCausalLM",
        "gemma3": "Gemma3ForConditionalGeneration",
        "mistral3": "Mistral3ForConditionalGeneration",
    }
    model_type = fields.text("model_type")
    return by_type.get(model_type, model_type)


def _dtype(fields: Fields) -> Dtype | None:
    """``dtype``, before transformers 4.56 ``torch_dtype``; None for anything else, the files know."""
    said = fields.raw.get("dtype") or fields.raw.get("torch_dtype")
    return next((dtype for dtype in ITEM_BYTES if said == dtype), None)


def _text(outer: Fields, text_type: str) -> Fields:
    """The fields of the text model; whether the head is tied is the outer model's to say."""
    text = outer.table("text_config")
    if text is None:
        raise outer.refuse("text_config", "is missing")
    text.must_be("model_type", text_type, default=text_type)
    own: dict[str, object] = {"tie_word_embeddings": outer.flag("tie_word_embeddings", True)}
    if text.raw.get("bos_token_id") is None:
        own["bos_token_id"] = outer.raw.get("bos_token_id")
    return Fields(outer.path, text.raw | own, "text_config.")
