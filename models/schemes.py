"""How the matrices of a folder are quantised, as config.json says it: GPTQ, AWQ, compressed-tensors, FP8.

Which matrices are, their tensors tell (``muxd.models.quantised``); how activations would be rounded is left
aside, since here they are rounded as the step likes. Formats as their makers write them: AutoGPTQ and
GPTQModel, AutoAWQ ("gemm"), github.com/vllm-project/compressed-tensors, and transformers' fine-grained FP8.
"""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

from muxd.models.config_file import Fields

Layout = Literal["gptq", "awq", "packed", "plain"]


class Scheme(Struct, frozen=True):
    """``layout``: how codes lie. "gptq": some in an int32, along columns, which come first; "awq": along
    rows, in an order of their own; "packed": along columns, rows first; "plain": a byte each.

    ``group``: columns that share a scale, 0: the whole row. ``block``: or so many rows and columns.
    ``symmetric``: there are no zero points but the middle. ``less_one``: zero points are stored less by one.
    ``scattered``: which group a column is in stands in a tensor.
    """

    layout: Layout
    bits: int
    group: int = 0
    block: tuple[int, int] | None = None
    symmetric: bool = True
    less_one: bool = False
    scattered: bool = False
    floats: bool = False  # codes are float8 (e4m3)


def gptq(fields: Fields) -> Scheme:
    """Raises ModelFolderError, as all of these do."""
    if fields.raw.get("dynamic"):
        raise fields.refuse("dynamic", "quantises matrices in several ways, which is not read yet")
    kind = fields.text("checkpoint_format", "gptq")
    if kind not in ("gptq", "gptq_v2"):
        raise fields.refuse("checkpoint_format", f'must be "gptq" or "gptq_v2", not "{kind}"')
    group = _group(fields, "group_size")
    return Scheme(
        "gptq",
        _bits(fields, fields.integer("bits"), (4, 8)),
        group,
        symmetric=fields.flag("sym", True),
        less_one=kind == "gptq",
        scattered=fields.flag("desc_act", False) and group > 0,
    )


def awq(fields: Fields) -> Scheme:
    version = fields.text("version", "gemm").lower()
    if version != "gemm":
        raise fields.refuse("version", f'must be "gemm", not "{version}"')
    fields.must_be("zero_point", True, default=True)
    bits = fields.integer("bits" if "bits" in fields.raw else "w_bit", 4)
    group = _group(fields, "group_size" if "group_size" in fields.raw else "q_group_size")
    return Scheme("awq", _bits(fields, bits, (4,)), group, symmetric=False)


def fp8(fields: Fields) -> Scheme:
    """Blocks of ``weight_block_size``, or rows or the whole matrix with one scale."""
    return Scheme("plain", 8, block=_block(fields, "weight_block_size"), floats=True)


def compressed_tensors(fields: Fields) -> Scheme:
    sparse = fields.table("sparsity_config")
    if sparse is not None and sparse.raw.get("format", "dense") != "dense":
        raise sparse.refuse("format", 'must be "dense"')
    groups = fields.table("config_groups")
    named = [name for name in groups.raw if groups.raw[name]] if groups is not None else []
    if groups is None or len(named) != 1 or (one := groups.table(named[0])) is None:
        raise fields.refuse("config_groups", "must be one group: all matrices quantised in one way")
    weights = one.table("weights")
    if weights is None:
        raise one.refuse("weights", "is missing")
    kind = one.text("format", fields.text("format", ""))
    if kind not in _COMPRESSED:
        raise fields.refuse("format", f'must be one of {", ".join(_COMPRESSED)}, not "{kind}"')
    floats = weights.text("type", "int") == "float"
    bits = _bits(weights, weights.integer("num_bits", 8), (4, 8) if kind == "pack-quantized" else (8,))
    if floats and kind == "pack-quantized":
        raise weights.refuse("type", 'must be "int" where format is "pack-quantized"')
    symmetric = weights.flag("symmetric", True)
    if not symmetric and kind != "pack-quantized":
        raise weights.refuse("symmetric", 'must be true unless format is "pack-quantized"')
    strategy, group, block = weights.text("strategy", "tensor"), 0, None
    if strategy == "group":
        group = _group(weights, "group_size")
    elif strategy == "block":
        block = _block(weights, "block_structure")
    elif strategy not in ("channel", "tensor"):
        raise weights.refuse("strategy", f'must be "group", "channel", "tensor" or "block", not "{strategy}"')
    scattered = weights.raw.get("actorder") in ("group", True)
    layout: Layout = "packed" if kind == "pack-quantized" else "plain"
    return Scheme(layout, bits, group, block, symmetric, scattered=scattered, floats=floats)


_COMPRESSED = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized")

SCHEMES: dict[str, Callable[[Fields], Scheme]] = {
    "gptq": gptq, "awq": awq, "fp8": fp8, "compressed-tensors": compressed_tensors,
}  # fmt: skip


def _bits(fields: Fields, found: int, served: tuple[int, ...]) -> int:
    if found not in served:
        raise fields.refuse("bits", f"must be {' or '.join(map(str, served))}, not {found}")
    return found


def _group(fields: Fields, key: str) -> int:
    """-1 is a whole row."""
    if fields.raw.get(key) == -1:
        return 0
    return fields.integer(key, 128)


def _block(fields: Fields, key: str) -> tuple[int, int] | None:
    """[rows, columns]."""
    match fields.raw.get(key):
        case None:
            return None
        case [int(rows), int(columns)] if rows > 0 and columns > 0:
            return rows, columns
        case other:
            raise fields.refuse(key, f"must be two whole numbers of at least 1, not {other!r:.40}")
