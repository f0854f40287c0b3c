"""Weights and activations as float8, by torch alone: what 8-bit weights would be worth at a step's shapes.

    python benchmarks/probe_float8.py --out F.jsonl

``torch._scaled_mm`` with a scale for each row; the time to quantise activations is not in it. Needs a GPU: no
rehearsal. Has not run on one.
"""

from functools import partial
from typing import Any

import torch
from probe import Probe, main
from probe_linears import copies_of, weights
from roofline_device import free
from roofline_kernels import MODELS
from torch import Tensor

_FLOAT8 = torch.float8_e4m3fn
_LINES = (1, 8, 32, 128, 2048)


def float8(probe: Probe) -> None:
    for name in ("qkv", "gate_up", "down"):
        rows, columns = weights(MODELS[3])[name]
        copies = copies_of(probe, rows * columns)
        held = torch.randn(copies, rows, columns, device=probe.device).to(_FLOAT8)
        for lines in _LINES:
            what = {"weight": name, "rows": rows, "columns": columns, "lines": lines}
            probe.attempt(what, partial(_timed, probe, what, held))
        del held
        free(probe.plan)


def _timed(probe: Probe, what: dict[str, Any], held: Tensor) -> None:
    _, rows, columns = held.shape
    x = torch.randn(what["lines"], columns, device=probe.device).to(_FLOAT8)
    scales = torch.ones(len(x), 1, device=probe.device), torch.ones(1, rows, device=probe.device)

    def product(i: int) -> Tensor:
        return torch._scaled_mm(
            x, held[i % len(held)].t(), scale_a=scales[0], scale_b=scales[1],
            out_dtype=probe.dtype, use_fast_accum=True,
        )  # fmt: skip

    probe.time(what, product, max(4, len(held)), rows * columns, 2 * len(x) * rows * columns)


if __name__ == "__main__":
    main({"float8": float8}, __doc__)
