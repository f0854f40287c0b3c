"""Model folders quantised as other tools write them: random codes, packed bit by bit as their formats say."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_AWQ = [0, 2, 4, 6, 1, 3, 5, 7]  # which of eight columns lies at each place (AutoAWQ, gemm)


class Codes(NamedTuple):
    """A matrix [outputs, inputs]: (codes - zeros) * scales, with the group of each input."""

    codes: Tensor  # from 0 on
    zeros: Tensor  # [outputs, groups]
    scales: Tensor  # [outputs, groups]
    groups: Tensor  # [inputs]

    @property
    def numbers(self) -> Tensor:
        return (self.codes - self.zeros[:, self.groups]).float() * self.scales.float()[:, self.groups]


def drawn(
    rows: int,
    columns: int,
    bits: int,
    group: int,
    seed: int,
    *,
    symmetric: bool = True,
    scattered: bool = False,
) -> Codes:
    """``group`` 0: the whole row."""
    generator = torch.Generator().manual_seed(seed)
    levels, count = 1 << bits, -(-columns // group) if group else 1
    codes = torch.randint(0, levels, (rows, columns), generator=generator, dtype=torch.int64)
    zeros = torch.full((rows, count), levels // 2)
    if not symmetric:
        zeros = torch.randint(0, levels, (rows, count), generator=generator)
    scales = (torch.rand(rows, count, generator=generator) + 0.2) * 4 / levels / columns**0.5
    groups = torch.arange(columns) // (group or columns)
    if scattered:
        groups = groups[torch.randperm(columns, generator=generator)]
    return Codes(codes, zeros, scales.half(), groups)


def packed(codes: Tensor, bits: int, order: list[int] | None = None) -> Tensor:
    """int32 [lines, n * bits / 32] of codes [lines, n], the first in the lowest bits."""
    each = 32 // bits
    found = torch.zeros(codes.shape[0], -(-codes.shape[1] // each), dtype=torch.int64)
    for place in range(each):
        column = codes[:, (order[place] if order else place) :: each]
        found[:, : column.shape[1]] |= column << (bits * place)
    return torch.where(found >= 1 << 31, found - (1 << 32), found).to(torch.int32)


def _shape(matrix: Tensor) -> tuple[int, int]:
    rows, columns = matrix.shape
    return rows, columns


Written = tuple[dict[str, Tensor], Tensor]  # tensors by the ends of their names, and the numbers


def gptq(
    bits: int, group: int, *, symmetric: bool = True, scattered: bool = False, less_one: bool = True
) -> Callable[[Tensor, int], Written]:  # fmt: skip
    def write(matrix: Tensor, seed: int) -> Written:
        one = drawn(*_shape(matrix), bits, group, seed, symmetric=symmetric, scattered=scattered)
        zeros = one.zeros - 1 & (1 << bits) - 1 if less_one else one.zeros
        tensors = {
            "qweight": packed(one.codes, bits).T.contiguous(), "qzeros": packed(zeros.T.contiguous(), bits),
            "scales": one.scales.T.contiguous(), "g_idx": one.groups.to(torch.int32),
            "bias": torch.zeros(matrix.shape[0], dtype=torch.float16),
        }  # fmt: skip
        return tensors, one.numbers

    return write


def awq(group: int) -> Callable[[Tensor, int], Written]:
    def write(matrix: Tensor, seed: int) -> Written:
        one = drawn(*_shape(matrix), 4, group, seed, symmetric=False)
        tensors = {
            "qweight": packed(one.codes.T.contiguous(), 4, _AWQ),
            "qzeros": packed(one.zeros.T.contiguous(), 4, _AWQ), "scales": one.scales.T.contiguous(),
        }  # fmt: skip
        return tensors, one.numbers

    return write


def compressed(bits: int, group: int, *, symmetric: bool = True) -> Callable[[Tensor, int], Written]:
    """compressed-tensors' pack-quantized."""

    def write(matrix: Tensor, seed: int) -> Written:
        one = drawn(*_shape(matrix), bits, group, seed, symmetric=symmetric)
        scales = one.scales.to(torch.bfloat16)
        tensors = {
            "weight_packed": packed(one.codes, bits), "weight_scale": scales,
            "weight_shape": torch.tensor(matrix.shape, dtype=torch.int64),
        }  # fmt: skip
        if not symmetric:
            tensors["weight_zero_point"] = packed(one.zeros.T.contiguous(), bits).T.contiguous()
        return tensors, one._replace(scales=scales).numbers

    return write


def int8(matrix: Tensor, seed: int) -> Written:
    """compressed-tensors' int-quantized, a scale a row."""
    one = drawn(*_shape(matrix), 8, 0, seed)
    return {"weight": (one.codes - 128).to(torch.int8), "weight_scale": one.scales}, one.numbers


def fp8(block: tuple[int, int] | None, scale: str) -> Callable[[Tensor, int], Written]:
    """``block``: with a scale each; None: one a row."""

    def write(matrix: Tensor, seed: int) -> Written:
        generator = torch.Generator().manual_seed(seed)
        rows, columns = matrix.shape
        codes = (torch.randn(rows, columns, generator=generator) * 60).to(torch.float8_e4m3fn)
        down, along = block or (1, columns)
        shape = -(-rows // down), -(-columns // along)
        scales = (torch.rand(shape, generator=generator) + 0.5) / 60 / columns**0.5
        whole = scales.repeat_interleave(down, 0)[:rows].repeat_interleave(along, 1)[:, :columns]
        return {"weight": codes, scale: scales, "input_scale": torch.ones(1)}, codes.float() * whole

    return write


class Form(NamedTuple):
    settings: dict[str, Any]  # quantization_config
    write: Callable[[Tensor, int], Written]
    kept: str  # the blocks that its rows become; "": floats


def _ct(kind: str, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": {"group_0": group},
            "ignore": ["lm_head"], "kv_cache_scheme": None}  # fmt: skip


_GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
_AWQ_SETTINGS = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm", "zero_point": True}
FORMS = {
    "gptq": Form(_GPTQ, gptq(4, 128), "q4_0"),
    "gptq of rows": Form(_GPTQ | {"group_size": -1}, gptq(4, 0), "q4_0"),
    "gptq asymmetric": Form(_GPTQ | {"sym": False, "group_size": 64}, gptq(4, 64, symmetric=False), "q4_1"),
    "gptq v2": Form(
        _GPTQ | {"sym": False, "checkpoint_format": "gptq_v2"},
        gptq(4, 128, symmetric=False, less_one=False),
        "q4_1",
    ),
    "gptq act-order": Form(_GPTQ | {"desc_act": True}, gptq(4, 128, scattered=True), ""),
    "gptq of 8 bits": Form(_GPTQ | {"bits": 8, "group_size": 32}, gptq(8, 32), "q8_0"),
    "gptq of 8 bits, asymmetric": Form(_GPTQ | {"bits": 8, "sym": False}, gptq(8, 128, symmetric=False), ""),
    "awq": Form(_AWQ_SETTINGS, awq(128), "q4_1"),
    "packed": Form(
        _ct("pack-quantized", num_bits=4, group_size=128, strategy="group", symmetric=True),
        compressed(4, 128),
        "q4_0",
    ),
    "packed asymmetric": Form(
        _ct("pack-quantized", num_bits=4, group_size=32, strategy="group", symmetric=False),
        compressed(4, 32, symmetric=False),
        "q4_1",
    ),
    "packed of 8 bits": Form(
        _ct("pack-quantized", num_bits=8, group_size=None, strategy="channel"), compressed(8, 0), "q8_0"
    ),
    "int8": Form(_ct("int-quantized", num_bits=8, strategy="channel", symmetric=True), int8, "q8_0"),
    "float8 of rows": Form(
        _ct("float-quantized", num_bits=8, type="float", strategy="channel"), fp8(None, "weight_scale"), ""
    ),
    "float8 of blocks": Form(
        {"quant_method": "fp8", "weight_block_size": [48, 80], "activation_scheme": "dynamic"},
        fp8((48, 80), "weight_scale_inv"),
        "",
    ),
}


def quantise(folder: Path, plain: Path, form: Form) -> None:
    """Every projection of ``folder`` becomes random codes; ``plain`` is the same model with their numbers."""
    path = folder / "model.safetensors"
    stored, told, numbers = load_file(path), dict[str, Tensor](), dict[str, Tensor]()
    for seed, (name, tensor) in enumerate(sorted(stored.items())):
        if not name.endswith("_proj.weight"):
            told[name] = numbers[name] = tensor
            continue
        parts, numbers[name] = form.write(tensor, seed)
        told |= {f"{name.removesuffix('weight')}{end}": part for end, part in parts.items()}
    plain.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        if file.suffix == ".json":
            (plain / file.name).write_bytes(file.read_bytes())
    save_file(numbers, plain / "model.safetensors", metadata={"format": "pt"})
    save_file(told, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": form.settings}))
