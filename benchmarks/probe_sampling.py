"""Picking tokens of lines that filter: the list as it serves, by ``torch.topk`` as it was, and the search
alone.

    python benchmarks/probe_sampling.py --out F.jsonl [--dry]

Peaked logits as of a trained model, and flat ones whose nucleus no list holds or only a long one. "differ":
of how many lines the token is another one than the kernel picks that serves. Has not run on a GPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from probe import Probe, main
from roofline_device import free
from roofline_kernels import MODELS, SMALL, ModelShape, alike
from torch import Tensor

from muxd.kernels.sampling import SamplingLines

_BATCHES = (1, 8, 32, 128)
_LISTS = (1024, 8192)
_ASKED: dict[str, dict[str, float]] = {
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 40},
    "top_k, top_p, min_p": {"top_k": 100, "top_p": 0.95, "min_p": 0.01},
    "none": {},
}
_SPREADS = {"peaked": 6.0, "flat": 1.0}

Sample = Callable[[Tensor, SamplingLines, Tensor], Tensor]


def filters(probe: Probe) -> None:
    model: ModelShape = SMALL if probe.dry else MODELS[0]
    for batch in (2,) if probe.dry else _BATCHES:
        for spread in _SPREADS if batch == 32 else ("peaked",):
            logits = (probe.random(batch, model.vocab) * _SPREADS[spread]).to(probe.dtype)
            for name, asked in list(_ASKED.items())[: 1 if probe.dry else None]:
                _asked(probe, {"batch": batch, "logits": spread, "asked": name}, logits, asked)
            free(probe.plan)


def _asked(probe: Probe, what: dict[str, Any], logits: Tensor, asked: dict[str, float]) -> None:
    lines = alike(len(logits), probe.device, temperature=0.8, **asked)
    counts = torch.zeros(1, logits.shape[1], dtype=torch.int32, device=probe.device)
    ways = _ways(probe.dry)
    wanted = ways["list of 8192"](logits, lines, counts).tolist()
    for name, way in ways.items():
        told = {**what, "way": name}
        probe.attempt(told, partial(_way, probe, told, partial(way, logits, lines, counts), wanted))


def _way(probe: Probe, told: dict[str, Any], once: Callable[[], Tensor], wanted: list[int]) -> None:
    found: list[int] = once().tolist()
    told["differ"] = sum(a != b for a, b in zip(found, wanted, strict=True))
    probe.time(told, lambda i: once(), 4)


def _ways(dry: bool) -> dict[str, Sample]:
    from unmeasured_variants import sampling_topk

    from muxd.kernels import sampling_kernel

    lists = {
        f"list of {n}": partial(sampling_kernel.sample, shortlist=n) for n in (_LISTS[1:] if dry else _LISTS)
    }
    return {**lists, "topk": sampling_topk.sample, "searched": partial(sampling_kernel.sample, shortlist=2)}


if __name__ == "__main__":
    main({"filters": filters}, __doc__)
