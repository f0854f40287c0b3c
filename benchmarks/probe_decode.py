"""Decode attention: the tiles it could have, contexts of very different lengths, and how items are cut and
merged.

    python benchmarks/probe_decode.py --out F.jsonl [--dry] [--only shapes|skew|plan]

Every variant is first compared with the kernel as it serves ("off_by": relative, of the whole output), then
timed; TB/s are of the keys and values that must be read. Has not run on a GPU.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import torch
from probe import Probe, compile_all, main, off_by
from roofline_device import free
from roofline_kernels import MODELS, SMALL, ModelShape, filled_pool, sms_of
from torch import Tensor

from muxd.kernels.launch import Call
from muxd.kernels.paged_decode import AN_SM, DecodePlan
from muxd.kernels.paged_pool import PagedPool

_LARGE, _SMALL = MODELS[3], MODELS[0]
# TILE, warps, stages, and items an SM.
_SHAPES = (
    (64, 4, 3, AN_SM), (64, 4, 2, AN_SM), (64, 4, 4, AN_SM), (128, 4, 2, AN_SM), (128, 4, 3, AN_SM),
    (128, 8, 2, AN_SM), (128, 8, 3, AN_SM), (32, 4, 4, AN_SM), (64, 4, 3, 3), (64, 4, 3, 12),
)  # fmt: skip
_UNEVEN = {
    "one long": [32768] + [512] * 63,
    "one longer": [16384] + [1024] * 39,
    "even": [2048] * 32,
    "alone": [32768],
}
_AN_SM = (2, 3, AN_SM, 12)  # three are on an SM at a time

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
        self._lengths, self._probe, self._sms = probe.numbers(lengths), probe, sms_of(probe.device)
        self.longest, self._batch = max(lengths), len(lengths)
        self._plan = cache(self._planned)
        self._wanted = launched(self.served(0))

    def _planned(self, an_sm: int) -> DecodePlan:
        """One for all layers, as in a step; its own time is asked for by "plan"."""
        from muxd.kernels import paged_decode_kernel

        return paged_decode_kernel.plan_decode(self._lengths, self.model.kv_heads, programs=an_sm * self._sms)

    def plan_call(self) -> Call:
        from muxd.kernels import paged_decode_kernel

        (call,) = paged_decode_kernel.plan_calls(
            self._lengths, self.model.kv_heads, programs=AN_SM * self._sms
        )[1]
        return call

    def served(self, layer: int, an_sm: int = AN_SM, **options: int) -> Made:
        """``options``: other ones of the launch."""
        from muxd.kernels import paged_decode_kernel

        out, (item,) = paged_decode_kernel.decode_calls(
            self._q,
            self._pool,
            layer,
            self._rows,
            self._lengths,
            self._plan(an_sm),
            scale=self.model.head_dim**-0.5,
        )
        return out, [item._replace(options={**item.options, **options})]

    def merged_apart(self, layer: int, an_sm: int) -> Made:
        from unmeasured_variants import decode_merge

        scale = self.model.head_dim**-0.5
        return decode_merge.decode_calls(
            self._q, self._pool, layer, self._rows, self._lengths, self._plan(an_sm), scale=scale
        )

    def split(self, layer: int, splits: int) -> Made:
        """As many programs for every sequence; 0: as was planned from shapes."""
        from unmeasured_variants import decode_splits

        planned = decode_splits.plan_splits(self._batch, self.model.kv_heads, self.longest, self._sms)
        scale = self.model.head_dim**-0.5
        return decode_splits.decode_calls(
            self._q, self._pool, layer, self._rows, self._lengths, scale=scale, splits=splits or planned
        )

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
    probe: Probe, case: Case, of: tuple[int, int], chosen: tuple[tuple[int, int, int, int], ...]
) -> None:
    variants = []
    for tile, warps, stages, an_sm in chosen:
        options = {"TILE": tile, "num_warps": warps, "num_stages": stages}
        what = {"batch": of[0], "context": of[1], **options, "an_sm": an_sm}
        variants.append((what, partial(case.served, an_sm=an_sm, **options)))
    case.time(variants)


def skew(probe: Probe) -> None:
    for name, lengths in _UNEVEN.items():
        _skew(Case(probe, _LARGE, lengths, 8), name, (0, 4, 16), _AN_SM)
        free(probe.plan)


def rehearsed_skew(probe: Probe) -> None:
    _skew(Case(probe, SMALL, [600, 3, 0], 1), "tiny", (0, 3), (20,))


def _skew(case: Case, name: str, splits: tuple[int, ...], an_sm: tuple[int, ...]) -> None:
    """Cut by the lengths, merged by the last program or by a launch; and as before, by shapes alone."""
    items = [({"lengths": name, "items an SM": count}, partial(case.served, an_sm=count)) for count in an_sm]
    apart = [
        ({"lengths": name, "items an SM, merged apart": count}, partial(case.merged_apart, an_sm=count))
        for count in an_sm
    ]
    before = [({"lengths": name, "splits": count}, partial(case.split, splits=count)) for count in splits]
    case.time([*items, *apart, *before])


def plan(probe: Probe) -> None:
    """A step's own part of the cut, once for all its layers."""
    model = SMALL if probe.dry else _LARGE
    for batch in (2,) if probe.dry else (1, 32, 128):
        case = Case(probe, model, [40 if probe.dry else 512] * batch, 1)
        call = case.plan_call()
        probe.time({"batch": batch}, lambda i, own=call: own.run(), 16)  # type: ignore[misc]
        free(probe.plan)


if __name__ == "__main__":
    main(
        {"skew": skew, "shapes": shapes, "plan": plan},
        __doc__,
        dry={"skew": rehearsed_skew, "shapes": rehearsed_shapes, "plan": plan},
    )
