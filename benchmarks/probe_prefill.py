"""Prefill attention: the tiles that it could have, and what torch brings.

    python benchmarks/probe_prefill.py --out F.jsonl [--dry]

One prompt, causal, in a scattered pool; torch's kernels read the same numbers side by side in memory, which
a pool cannot give them. Every variant is first compared with the kernel as it serves. Has not run on a GPU.
"""

from functools import partial
from typing import Any

import torch
from probe import Probe, compile_all, main, off_by
from roofline_kernels import MODELS, SMALL, ModelShape, filled_pool
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from muxd.kernels import paged_prefill_kernel
from muxd.kernels.launch import Call

# BLOCK_M, TILE, warps, stages.
_SHAPES = ((128, 64, 8, 3), (64, 64, 4, 3), (64, 64, 4, 2), (128, 64, 8, 4))
_PEERS = ("FLASH_ATTENTION", "CUDNN_ATTENTION")


class Case:
    """One prompt's attention; what the kernel that serves makes of it is what the others are held to."""

    def __init__(self, probe: Probe, model: ModelShape, tokens: int):
        self._pool, rows = filled_pool(model, probe.device, 1, tokens, 2, probe.dtype)
        self._q = probe.random(tokens, model.heads, model.head_dim)
        self._places = rows, probe.numbers([0, tokens]), probe.numbers([0])
        self._probe, self._tokens, self._scale = probe, tokens, model.head_dim**-0.5
        self.flops = 2 * model.heads * model.head_dim * tokens**2  # causal: half of all pairs
        self._wanted = self.run(None, 0)

    def run(self, shape: tuple[int, ...] | None, layer: int) -> Tensor:
        out, call = self.made(shape, layer)
        call.run()
        return out

    def made(self, shape: tuple[int, ...] | None, layer: int) -> tuple[Tensor, Call]:
        out, (call,) = paged_prefill_kernel.prefill_calls(
            self._q, self._pool, layer, *self._places, scale=self._scale
        )
        return out, call if shape is None else reshaped(call, self._tokens, shape)

    def time(self, shape: tuple[int, ...]) -> None:
        what: dict[str, Any] = {"tokens": self._tokens, "kernel": "muxd"}
        what |= dict(zip(("block_m", "tile", "warps", "stages"), shape, strict=True))
        step = partial(self.run, shape)

        def both() -> None:
            what["off_by"] = float(f"{off_by(step(0), self._wanted):.1e}")
            self._probe.time(what, step, 2, flops=self.flops)

        self._probe.attempt(what, both)


def shapes(probe: Probe) -> None:
    model = SMALL if probe.dry else MODELS[3]
    for tokens in (50,) if probe.dry else (2048, 8192):
        case = Case(probe, model, tokens)
        variants = _SHAPES[: 1 if probe.dry else None]
        if not probe.dry:
            compile_all([case.made(shape, 0)[1] for shape in variants])
        for shape in variants:
            case.time(shape)
        if not probe.dry:
            _peers(probe, tokens, model, case.flops)


def reshaped(call: Call, tokens: int, shape: tuple[int, ...]) -> Call:
    """The launch with other sizes; the grid holds as many blocks as these need, for one sequence."""
    names = ("BLOCK_M", "TILE", "num_warps", "num_stages")
    grid = (tokens // (shape[0] // call.options["GROUP"]) + 1, call.grid[1])
    return call._replace(grid=grid, options={**call.options, **dict(zip(names, shape, strict=True))})


def _peers(probe: Probe, tokens: int, model: ModelShape, flops: int) -> None:
    numbers = [probe.random(1, model.heads, tokens, model.head_dim) for _ in range(3)]
    for name in _PEERS:
        what = {"tokens": tokens, "kernel": f"torch {name.lower()}"}
        probe.attempt(what, partial(_peer, probe, what, name, numbers, flops))


def _peer(probe: Probe, what: dict[str, Any], name: str, numbers: list[Tensor], flops: int) -> None:
    q, k, v = numbers
    dense = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(getattr(SDPBackend, name)):
        probe.time(what, lambda i: dense(q, k, v, is_causal=True), 2, flops=flops)


if __name__ == "__main__":
    main({"shapes": shapes}, __doc__)
