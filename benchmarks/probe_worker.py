"""The worker's own step: seconds to begin, memory of its graphs, and how much of a prefill the host takes.

    python benchmarks/probe_worker.py --out F.jsonl [--dry]

Has not run on a GPU.
"""

import statistics
import time
from typing import Any

import torch
from probe import Probe, main
from roofline_device import free
from roofline_kernels import MODELS, SMALL, ModelShape
from roofline_step import Bench

from muxd.worker.cuda_graphs import BUCKETS
from muxd.worker.sequence import Span

_PROMPTS = (16, 128, 512, 2048)
_TIMES = 7


def worker(probe: Probe) -> None:
    """Once without graphs and once with the first of them: the difference is theirs; kernels are compiled."""
    for model in (SMALL,) if probe.dry else (MODELS[0], MODELS[3]):
        for recorded in (False, True):
            bench = _begun(probe, model, recorded)
            if recorded:
                _recorded(probe, model, bench)
            _prefills(probe, model, bench, recorded)
            del bench
            free(probe.plan)


def _begun(probe: Probe, model: ModelShape, recorded: bool) -> Bench:
    tokens, longest = (130, 40) if probe.dry else (32 * 2049, 2048)
    before, begun = _memory(probe), time.perf_counter()
    bench = Bench(model, tokens, longest, probe.device, recorded)
    after, seconds = _memory(probe), time.perf_counter() - begun
    taken = {"mib": (before[0] - after[0]) >> 20, "torch_mib": (after[1] - before[1]) >> 20}
    told: dict[str, Any] = {"ran": True} if probe.dry else {**taken, "seconds": round(seconds, 2)}
    probe.say(model=model.name, graphs=recorded, **told)
    return bench


def _recorded(probe: Probe, model: ModelShape, bench: Bench) -> None:
    """One graph after another, as steps want them."""
    for lines in (1, 2) if probe.dry else BUCKETS:
        sequences, before, begun = bench.sequences(lines, 8), _memory(probe), time.perf_counter()
        bench.decode(sequences)
        after, seconds = _memory(probe), time.perf_counter() - begun
        taken = {"mib": (before[0] - after[0]) >> 20, "torch_mib": (after[1] - before[1]) >> 20}
        told: dict[str, Any] = {"ran": True} if probe.dry else {**taken, "seconds": round(seconds, 2)}
        probe.say(model=model.name, lines=lines, **told)
        bench.forget(sequences)


def _memory(probe: Probe) -> tuple[int, int]:
    """Free on the device, and held by torch."""
    if probe.dry:
        return 0, 0
    torch.cuda.synchronize()
    return torch.cuda.mem_get_info()[0], torch.cuda.memory_reserved()


def _prefills(probe: Probe, model: ModelShape, bench: Bench, recorded: bool) -> None:
    """One prompt: until its launches are queued, and until its token is there."""
    for tokens in (30,) if probe.dry else _PROMPTS:
        (sequence,) = bench.sequences(1, tokens)
        queued, whole = [], []
        for _ in range(_TIMES):
            begun = time.perf_counter()
            flight = bench.step.prefill([Span(sequence, 0, tokens)], [0])
            queued.append(time.perf_counter() - begun)
            flight.result()
            whole.append(time.perf_counter() - begun)
        bench.forget([sequence])
        times = {"host_ms": queued, "whole_ms": whole}
        told = {name: round(1e3 * statistics.median(some[2:]), 3) for name, some in times.items()}
        probe.say(model=model.name, prompt=tokens, graphs=recorded, **({"ran": True} if probe.dry else told))


if __name__ == "__main__":
    main({"worker": worker}, __doc__)
