"""Decode attention: the tiles and splits it could have, and contexts of very different lengths.

    python benchmarks/probe_decode.py --out F.jsonl [--dry] [--only shapes|skew]

Every variant is first compared with the kernel as it serves ("off_by": relative, of the whole output), then
timed; TB/s are of the keys and values that must be read. Has not run on a GPU.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import torch
from probe import Probe, compile_all, main, off_by
from roofline_device import free
from roofline_kernels import MODELS, SMALL, ModelShape, filled_pool, sms_of
from torch import Tensor

from muxd.kernels.launch import Call
from muxd.kernels.paged_decode import plan_splits
from muxd.kernels.paged_pool import PagedPool

_LARGE, _SMALL = MODELS[3], MODELS[0]
# TILE, warps, stages, and splits as a multiple of the plan's.
_SHAPES = (
    (64, 4, 3, 1.0), (64, 4, 2, 1.0), (64, 4, 4, 1.0), (128, 4, 2, 1.0), (128, 4, 3, 1.0), (128, 8, 2, 1.0),
    (128, 8, 3, 1.0), (32, 4, 4, 1.0), (64, 4, 3, 2.0), (64, 4, 3, 0.5),
)  # fmt: skip
_UNEVEN = {"one long": [32768] + [512] * 63, "one longer": [16384] + [1024] * 39, "even": [2048] * 32}
_PROGRAMS = (396, 792, 1584)  # one, two and four times what 132 SMs hold, three each

Made = tuple[Tensor, list[Call]]


def ragged(probe: Probe, model: ModelShape, lengths: list[int], layers: int) -> tuple[PagedPool, Tensor]:
    """A pool with room for just these contexts, scattered, and their rows [b, longest]."""
    pool, rows = filled_pool(model, probe.device, 1, 1, 1, probe.dtype)
    counts = [-(-length // pool.tokens) for length in lengths]
    held = sum(counts) * pool.tokens
    pool, all_rows = filled_pool(model, probe.device, 1, held, layers, probe.dtype)
    rows, taken = torch.zeros(len(lengths), max(counts), dtype=torch.int32, device=probe.device), 0
    for line, count in zip(rows, counts, strict=True):
        line[:count], taken = all_rows[0, taken : taken + count], taken + count
    return pool, rows


def launched(made: Made) -> Tensor:
    out, calls = made
    for call in calls:
        call.run()
    return out


class Case:
    """One step's attention of a model: what the kernel that serves makes of it, and what must be read."""

    def __init__(self, probe: Probe, model: ModelShape, lengths: list[int], layers: int):
        self.model, self.layers, self.nbytes = model, layers, sum(lengths) * model.kv_bytes
        self._pool, self._rows = ragged(probe, model, lengths, layers)
        self._q = probe.random(len(lengths), model.heads, model.head_dim)
        self._lengths, self._probe = probe.numbers(lengths), probe
        self.planned = plan_splits(len(lengths), model.kv_heads, max(lengths), sms_of(probe.device))
        self._wanted = launched(self.served(0, self.planned))

    def served(self, layer: int, splits: int, **first: int) -> Made:
        """``first``: other options of the first launch."""
        from muxd.kernels import paged_decode_kernel

        made, (split, *rest) = self._made(paged_decode_kernel, layer, splits=splits)
        return made, [split._replace(options={**split.options, **first}), *rest]

    def cut(self, layer: int, programs: int) -> Made:
        from unmeasured_variants import decode_items

        return self._made(decode_items, layer, programs=programs)

    def _made(self, kernel: ModuleType, layer: int, **options: int) -> Made:
        scale = self.model.head_dim**-0.5
        made: Made = kernel.decode_calls(
            self._q, self._pool, layer, self._rows, self._lengths, scale=scale, **options
        )
        return made

    def time(self, variants: Sequence[tuple[dict[str, Any], Callable[[int], Made]]]) -> None:
        """Answer with the time of one layer in each, compared with the kernel that serves."""
        if not self._probe.dry:
            compile_all([call for _, made in variants for call in made(0)[1]])
        for what, made in variants:
            self._time(what, made)

    def _time(self, what: dict[str, Any], made: Callable[[int], Made]) -> None:

        def both() -> None:
            error = float(f"{off_by(launched(made(0)), self._wanted):.1e}")
            told = {"model": self.model.name, **what, "off_by": error}
            self._probe.time(told, lambda i: launched(made(i)), self.layers, self.nbytes)

        self._probe.attempt(what, both)


def shapes(probe: Probe) -> None:
    for model, batch, context in ((_LARGE, 32, 2048), (_LARGE, 1, 8192), (_SMALL, 32, 2048)):
        _shapes(
            probe, Case(probe, model, [context] * batch, 8 if batch > 1 else 32), (batch, context), _SHAPES
        )


def rehearsed_shapes(probe: Probe) -> None:
    _shapes(probe, Case(probe, SMALL, [40, 40], 2), (2, 40), _SHAPES[3:5])


def _shapes(
    probe: Probe, case: Case, of: tuple[int, int], chosen: tuple[tuple[int, int, int, float], ...]
) -> None:
    variants = []
    for tile, warps, stages, factor in chosen:
        options = {"TILE": tile, "num_warps": warps, "num_stages": stages}
        splits = max(1, round(case.planned * factor))
        what = {"batch": of[0], "context": of[1], **options, "splits": splits}
        variants.append((what, partial(case.served, splits=splits, **options)))
    case.time(variants)


def skew(probe: Probe) -> None:
    for name, lengths in _UNEVEN.items():
        _skew(Case(probe, _LARGE, lengths, 8), name, (4, 8, 16, 32), _PROGRAMS)
        free(probe.plan)


def rehearsed_skew(probe: Probe) -> None:
    _skew(Case(probe, SMALL, [270, 3, 0], 1), "tiny", (3,), (20,))


def _skew(case: Case, name: str, splits: tuple[int, ...], programs: tuple[int, ...]) -> None:
    """As planned from shapes, with more splits for all, and cut on the device by the lengths."""
    split = [
        ({"lengths": name, "splits": count}, partial(case.served, splits=count))
        for count in dict.fromkeys((case.planned, *splits))
    ]
    cut = [
        ({"lengths": name, "items for programs": count}, partial(case.cut, programs=count))
        for count in programs
    ]
    case.time([*split, *cut])


if __name__ == "__main__":
    main({"skew": skew, "shapes": shapes}, __doc__, dry={"skew": rehearsed_skew, "shapes": rehearsed_shapes})
