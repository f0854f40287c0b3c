"""A model folder's ``config.json`` as one frozen struct. No torch: the deciding rooms size rows and check
contexts with the same facts the worker computes with.

What a file means is told by its family (``muxd.models.families``); here is what holds for all of them.
"""

from pathlib import Path

from msgspec import structs

from muxd.errors import ModelFolderError
from muxd.messages import ITEM_BYTES, Dtype
from muxd.models.config_file import Fields, shown
from muxd.models.families.table import FAMILIES, HEADLESS, WRAPPERS, Wrapper, by_type
from muxd.models.files import read_json
from muxd.models.folder import check_folder, quantisation
from muxd.models.model_spec import ModelSpec, tokens_per_row
from muxd.models.rope import FactorScaling, LongScaling, Rope

__all__ = ["ModelSpec", "read_spec", "tokens_per_row"]


def read_spec(folder: Path) -> ModelSpec:
    """Read ``config.json`` as transformers 4.x or 5.x writes it.

    Of a model that sees and reads (``text_config`` beside ``vision_config``) the part that reads. Raises
    ModelFolderError naming the file, the field and the reason.
    """
    path = folder / "config.json"
    check_folder(folder)
    outer = Fields(path, read_json(path))
    scheme = quantisation(path, outer.raw)
    named = _architecture(outer)
    architecture, fields = HEADLESS.get(named, named), outer
    if wrapper := WRAPPERS.get(named):
        architecture, fields = wrapper.architecture, _text(outer, wrapper)
    if architecture not in FAMILIES:
        known = ", ".join(sorted(FAMILIES.keys() | WRAPPERS.keys()))
        raise ModelFolderError(f"{path}: architecture {shown(named)} is not known; known: {known}")
    ends = {*outer.ids("eos_token_id"), *fields.ids("eos_token_id")}
    spec = structs.replace(
        FAMILIES[architecture].read(fields),
        architecture=architecture,
        eos_ids=tuple(sorted(ends)),
        wrapped=wrapper is not None,
        dtype=_dtype(fields) or _dtype(outer),
        scheme=scheme,
    )
    if named in HEADLESS:
        spec = structs.replace(spec, headless=True, tied_embeddings=True)
    _check(path, spec)
    return spec


def _check(path: Path, spec: ModelSpec) -> None:
    """Raises ModelFolderError for what no page could compute."""
    try:
        layout = spec.row_layout
    except ValueError as error:
        raise ModelFolderError(f"{path}: {error}") from None
    for kv_heads in {one.kv_heads for one in layout.layers if one.kv_heads}:
        if spec.heads % kv_heads:
            raise ModelFolderError(
                f"{path}: num_attention_heads {spec.heads} is not a multiple of num_key_value_heads "
                f"{kv_heads}"
            )
    for head_dim in {one.head_dim for one in layout.layers}:
        if head_dim % 2:
            raise ModelFolderError(f"{path}: head_dim {head_dim} is odd; rotary embedding needs pairs")
        for rope in (spec.rope, spec.local_rope):
            _check_rope(path, rope, head_dim)


def _check_rope(path: Path, rope: Rope, head_dim: int) -> None:
    pairs, scaling = (head_dim if rope.turned is None else rope.turned) // 2, rope.scaling
    lists = {"long_factor": scaling.factors} if isinstance(scaling, FactorScaling) else {}
    if isinstance(scaling, LongScaling):
        lists = {"long_factor": scaling.long, "short_factor": scaling.short}
    for name, listed in lists.items():
        if len(listed) != pairs:
            raise ModelFolderError(f"{path}: {name} does not list {pairs} factors, one a pair")
    if not all(one.finite(head_dim) for one in (rope, rope.within(1))):
        raise ModelFolderError(
            f"{path}: rope_theta and rope_scaling, or rope_parameters: angles that float32 cannot hold"
        )


def _architecture(fields: Fields) -> str:
    named = fields.raw.get("architectures")
    if isinstance(named, list) and named and isinstance(named[0], str):
        return named[0]
    return by_type(fields.text("model_type"))


def _dtype(fields: Fields) -> Dtype | None:
    """``dtype``, before transformers 4.56 ``torch_dtype``; None for anything else, the files know."""
    said = fields.raw.get("dtype") or fields.raw.get("torch_dtype")
    return next((dtype for dtype in ITEM_BYTES if said == dtype), None)


def _text(outer: Fields, wrapper: Wrapper) -> Fields:
    """The fields of the text model; whether the head is tied is the outer model's to say."""
    text = outer.table("text_config")
    if text is None:
        raise outer.refuse("text_config", "is missing")
    text.must_be("model_type", wrapper.text_type, default=wrapper.text_type)
    own: dict[str, object] = {"tie_word_embeddings": outer.flag("tie_word_embeddings", wrapper.tied)}
    if text.raw.get("bos_token_id") is None:
        own["bos_token_id"] = outer.raw.get("bos_token_id")
    return Fields(outer.path, text.raw | own, "text_config.")
