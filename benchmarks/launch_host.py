"""What the host does for the launches of one layer of an eager prefill, without a GPU.

    python benchmarks/launch_host.py [--rounds 30]

Kernels are compiled for a Hopper GPU that Triton only believes in, and nothing is launched, so driver and
device cost nothing: microseconds of Python on one core, the best round of each, in turns. "Looked at" has
Triton look at every argument of every launch; "kept" is what serves (``triton_kernels/launch.py``); "built"
launches nothing: the launches as values, with tensors for their results.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]  # the tests' GPU that is none

from provenance import machine, markdown_table  # noqa: E402
from support.hopper import hopper  # noqa: E402

from muxd.device.cpu import Cpu  # noqa: E402
from muxd.kernels import gated_kernel, paged_prefill_kernel, rms_norm_kernel, rope_write_kernel  # noqa: E402
from muxd.kernels.launch import Call  # noqa: E402
from muxd.kernels.paged_pool import PagedPool  # noqa: E402
from muxd.kernels.row_layout import KvHeads, laid_out  # noqa: E402

TOKENS, LAYERS = 2048, 24


class Shape(NamedTuple):
    name: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int


SHAPES = (Shape("0.5B", 896, 14, 2, 64, 4864), Shape("8B", 4096, 32, 8, 128, 14336))


class Layer:
    """Of a prompt of ``TOKENS`` in one sequence; its products, which cuBLAS computes, are left out."""

    def __init__(self, shape: Shape):
        own = KvHeads(shape.kv_heads, shape.head_dim)
        layout = laid_out((own,) * LAYERS)
        memory, table = torch.empty(64 * 8192, dtype=torch.uint8), torch.zeros(8, layout.blocks)
        self._pool = PagedPool.over(memory, 8192, table.int(), layout, torch.bfloat16)
        lines = shape.heads + 2 * shape.kv_heads
        self._x, self._weight = _empty(TOKENS, shape.hidden), _empty(shape.hidden)
        self._qkv, self._turn = _empty(TOKENS, lines, shape.head_dim), _empty(TOKENS, 1, shape.head_dim)
        self._up, self._heads = _empty(TOKENS, 2 * shape.inner), shape.heads
        self._places, self._rows = torch.zeros(TOKENS, dtype=torch.int32), torch.zeros(1, 256).int()

    def launches(self, number: int) -> list[Call]:
        places, rows, pool = self._places, self._rows, self._pool
        norms = [rms_norm_kernel.rms_norm_calls(self._x, self._weight, 1e-6)[1] for _ in range(2)]
        return [
            *norms[0],
            *rope_write_kernel.rope_write_calls(
                self._qkv, self._turn, self._turn, pool, number, rows, places, places
            ),
            *paged_prefill_kernel.prefill_calls(
                self._qkv[:, : self._heads], pool, number, rows, places[:2], places[:1], scale=0.1
            )[1],
            *norms[1],
            *gated_kernel.gate_calls(self._up, "silu")[1],
        ]


def _empty(*size: int) -> torch.Tensor:
    return torch.empty(*size, dtype=torch.bfloat16)


def built(call: Call) -> None:
    pass


def looked_at(call: Call) -> None:
    call._replace(options={**call.options}).run()


WAYS: dict[str, Callable[[Call], None]] = {"built": built, "looked at": looked_at, "kept": Call.run}


def measured(layer: Layer, run: Callable[[Call], None]) -> float:
    """Microseconds a layer, of a prompt through all of them."""
    begun = time.perf_counter()
    for number in range(LAYERS):
        for call in layer.launches(number):
            run(call)
    return 1e6 * (time.perf_counter() - begun) / LAYERS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    print(machine(Cpu()).line)
    rows = []
    with hopper():
        for shape in SHAPES:
            layer = Layer(shape)
            times = [[measured(layer, run) for run in WAYS.values()] for _ in range(rounds)]
            rows.append([shape.name, *(f"{min(one):.1f}" for one in zip(*times, strict=True))])
    print(markdown_table(["five launches, us a layer", *WAYS], rows))


if __name__ == "__main__":
    main()
