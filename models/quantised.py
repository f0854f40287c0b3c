"""Matrices that a folder stores in several tensors (codes, scales, zero points): found, checked, and named as
the one that they are. ``muxd.models.joined`` puts them together as they are read.

Groups of 32 columns and their multiples become GGUF's blocks (``muxd.models.blocks``), which the native step
multiplies and everything else reads: int4 as q4_0, with zero points as q4_1, int8 as q8_0. All else (float8,
groups by act-order) becomes floats.
"""

from typing import NamedTuple

from muxd.errors import ModelFolderError
from muxd.models.blocks import SIZES
from muxd.models.safetensors_index import Stored
from muxd.models.schemes import Scheme

GROUP = SIZES["q4_0"][0]  # numbers of a block, of all kinds that are made here


class _Names(NamedTuple):
    """Ends of the names of a matrix's tensors."""

    codes: str
    scales: tuple[str, ...]  # one of these
    zeros: str = ""
    groups: str = ""  # which group each column is in


_NAMES = {
    "gptq": _Names(".qweight", (".scales",), ".qzeros", ".g_idx"),
    "awq": _Names(".qweight", (".scales",), ".qzeros"),
    "packed": _Names(".weight_packed", (".weight_scale",), ".weight_zero_point", ".weight_g_idx"),
    "plain": _Names(".weight", (".weight_scale", ".weight_scale_inv")),
}
# Of activations, and of K and V, that are rounded otherwise here; and a shape that the tensors have anyway.
_UNREAD = (
    ".input_scale", ".input_zero_point", ".output_scale", ".activation_scale", ".k_scale", ".v_scale",
    ".q_scale", ".weight_shape",
)  # fmt: skip


def together(found: dict[str, Stored], scheme: Scheme) -> dict[str, Stored]:
    """One ``.weight`` for the tensors of each quantised matrix. Raises ModelFolderError."""
    names, out = _NAMES[scheme.layout], dict[str, Stored]()
    left = {name: one for name, one in found.items() if not name.endswith(_UNREAD)}
    for name, codes in found.items():
        if not name.endswith(names.codes) or not codes.raw:
            continue
        base = name.removesuffix(names.codes)
        parts = {"codes": left.pop(name)}
        for role, ends in (("scales", names.scales), ("zeros", (names.zeros,)), ("groups", (names.groups,))):
            there = [base + end for end in ends if end and base + end in left]
            if len(there) > 1:
                raise ModelFolderError(f"{codes.file}: {' and '.join(there)} say the same of one matrix")
            if there:
                parts[role] = left.pop(there[0])
        out[f"{base}.weight"] = _matrix(base, parts, scheme)
    for name, one in left.items():
        if one.raw:
            raise ModelFolderError(
                f"{one.file}: tensor {name} has dtype {one.raw}, and config.json does not say how it is read"
            )
    return left | out


def _matrix(base: str, parts: dict[str, Stored], scheme: Scheme) -> Stored:
    codes = parts["codes"]
    if len(codes.shape) != 2:
        raise ModelFolderError(f"{codes.file}: tensor {base} has codes of shape {list(codes.shape)}")
    needed = {"scales"} | ({"zeros"} if not scheme.symmetric else set())
    needed |= {"groups"} if scheme.scattered else set()
    if missing := needed - parts.keys():
        raise ModelFolderError(f"{codes.file}: tensor {base} has no {' and no '.join(sorted(missing))}")
    rows, columns = matrix_shape(codes.shape, scheme)
    _check(base, parts, scheme, rows, columns)
    kind = _kind(scheme, columns)
    return Stored(codes.file, "bfloat16" if kind else "float32", (rows, columns), 0, kind, "", parts, scheme)


def matrix_shape(codes: tuple[int, ...], scheme: Scheme) -> tuple[int, int]:
    """[outputs, inputs] of the matrix whose codes have this shape."""
    first, second = codes
    each = 32 // scheme.bits
    match scheme.layout:
        case "gptq":
            return second, first * each
        case "awq":
            return second * each, first
        case "packed":
            return first, second * each
        case "plain":
            return first, second


def _kind(scheme: Scheme, columns: int) -> str:
    """What its rows become: blocks, or floats."""
    if scheme.floats or scheme.scattered or scheme.block or columns % GROUP or scheme.group % GROUP:
        return ""
    if scheme.bits == 4:
        return "q4_0" if scheme.symmetric else "q4_1"
    return "q8_0" if scheme.symmetric else ""


def _check(base: str, parts: dict[str, Stored], scheme: Scheme, rows: int, columns: int) -> None:
    """That the tensors fit each other. Raises ModelFolderError."""
    groups, each = -(-columns // scheme.group) if scheme.group else 1, 32 // scheme.bits
    plain = "F8_E4M3" if scheme.floats else "I8"
    zeros = (-(-rows // each), groups) if scheme.layout == "packed" else (groups, rows // each)
    wanted: dict[str, tuple[str, list[tuple[int, ...]]]] = {
        "codes": (plain if scheme.layout == "plain" else "I32", [parts["codes"].shape]),
        "scales": ("", _scales(scheme, rows, columns, groups)),
        "zeros": ("I32", [zeros]),
        "groups": ("I32", [(columns,)]),
    }
    for role, part in parts.items():
        dtype, shapes = wanted[role]
        if part.raw != dtype or part.shape not in shapes:
            asked = " or ".join(str(list(shape)) for shape in shapes)
            raise ModelFolderError(
                f"{part.file}: tensor {base} has {role} of {part.raw or part.dtype} {list(part.shape)}, and "
                f"config.json asks for {dtype or 'floats'} {asked}"
            )


def _scales(scheme: Scheme, rows: int, columns: int, groups: int) -> list[tuple[int, ...]]:
    """The shapes that they may have."""
    if scheme.block is not None:
        down, along = scheme.block
        return [(-(-rows // down), -(-columns // along))]
    if scheme.layout in ("gptq", "awq"):
        return [(groups, rows)]
    return [(rows, groups)] if scheme.group else [(rows, 1), (rows,), (1,), (1, 1), ()]
