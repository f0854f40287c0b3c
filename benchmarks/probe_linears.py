"""Matrix products at the shapes of a step, from one token to a long prompt: what cuBLAS makes of each.

    python benchmarks/probe_linears.py --out F.jsonl [--dry]

TB/s of weights says how a small batch does, TFLOP/s a large one. cuBLAS's workspace is chosen by
CUBLAS_WORKSPACE_CONFIG, which is told with every answer. Has not run on a GPU.
"""

import os
from functools import partial
from typing import Any

import torch
from probe import Probe, main
from roofline_device import free
from roofline_kernels import MODELS, SMALL, ModelShape
from torch import Tensor

_LINES = (1, 8, 16, 32, 64, 128, 512, 2048)


def weights(model: ModelShape) -> dict[str, tuple[int, int]]:
    """Rows and columns of every weight a layer and the head multiply by."""
    q, kv = model.heads * model.head_dim, model.kv_heads * model.head_dim
    return {
        "qkv": (q + 2 * kv, model.hidden),
        "o": (model.hidden, q),
        "gate_up": (2 * model.inner, model.hidden),
        "down": (model.hidden, model.inner),
        "head": (model.vocab, model.hidden),
    }


def linears(probe: Probe) -> None:
    for model in (SMALL,) if probe.dry else (MODELS[3], MODELS[0]):
        for name, (rows, columns) in weights(model).items():
            _weight(probe, {"model": model.name, "weight": name, "rows": rows, "columns": columns})
            free(probe.plan)


def _weight(probe: Probe, what: dict[str, Any]) -> None:
    rows, columns = what["rows"], what["columns"]
    copies = copies_of(probe, 2 * rows * columns)
    held = torch.randn(copies, rows, columns, device=probe.device).mul_(0.02).to(probe.dtype)
    for lines in _LINES[: 2 if probe.dry else None]:
        product = partial(_product, probe.random(lines, columns), held, probe.random(lines, rows))
        told = {**what, "lines": lines, "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "its own")}
        cost = 2 * rows * columns, 2 * lines * rows * columns
        probe.time(told, product, max(4, copies), *cost)


def copies_of(probe: Probe, nbytes: int) -> int:
    """How many weights of this size keep the L2 cache from answering."""
    return max(1, min(64, -(-probe.plan.cold_bytes // nbytes)))


def _product(x: Tensor, held: Tensor, out: Tensor, i: int) -> Tensor:
    return torch.mm(x, held[i % len(held)].t(), out=out)


if __name__ == "__main__":
    main({"linears": linears}, __doc__)
