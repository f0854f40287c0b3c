"""Whole steps of the worker's own code, with random weights: decode with and without graphs, and prefill.

A step is what a command costs a worker: upload, model, head, argmax, tokens back on the host. Its bound is
the least it must read and compute: every weight once, every token's K and V once. Steps are timed one after
another, and as a worker runs them, each queued before the one in front is read. The profiler's line says
which kernels a step's time goes to and how much of it the device idles between them.
"""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
from roofline_device import Peaks, Plan, free
from roofline_kernels import BF16, BLOCK_BYTES, Measurement, ModelShape

from muxd.messages import NewRows, Sampling, Setup, TensorEntry
from muxd.models.rope import Rope
from muxd.models.spec import ModelSpec
from muxd.models.tensors import wanted
from muxd.worker.cuda_prompts import PROMPTS
from muxd.worker.cuda_step import CudaStep
from muxd.worker.sequence import Sequence, Span

_GREEDY = Sampling(temperature=0.0)
_PROFILED = 5  # steps under the profiler
_NAMED = 4  # kernels whose part is told


def measure(peaks: Peaks, models: tuple[ModelShape, ...], plan: Plan) -> Iterator[Measurement]:
    """Every case of every model, on the plan's device."""
    for model in models:
        for part in (_recorded, _eager, _prefill):
            with torch.inference_mode():
                yield from part(peaks, model, plan)
            free(plan)


# ---- bounds -------------------------------------------------------------------------------------------


def weights_of(model: ModelShape) -> int:
    """Parameters that a token multiplies by: body and head."""
    attention = model.hidden * model.head_dim * 2 * (model.heads + model.kv_heads)
    return model.layers * (attention + 3 * model.hidden * model.inner) + model.hidden * model.vocab


def decode_cost(model: ModelShape, batch: int, context: int) -> tuple[float, float]:
    """Bytes and operations of one decode step at least."""
    kv = batch * (context + 1) * model.layers * model.kv_bytes
    attention = 4 * batch * context * model.layers * model.heads * model.head_dim
    return 2 * weights_of(model) + kv, 2 * weights_of(model) * batch + attention


def prefill_cost(model: ModelShape, tokens: int) -> tuple[float, float]:
    """Bytes and operations of one prompt at least; the head is for its last token alone."""
    head = model.hidden * model.vocab
    attention = 2 * model.layers * model.heads * model.head_dim * tokens**2  # causal: half of all pairs
    flops = 2 * (weights_of(model) - head) * tokens + 2 * head + attention
    return 2 * weights_of(model) + tokens * model.layers * model.kv_bytes, flops


def line(
    peaks: Peaks,
    model: ModelShape,
    kind: str,
    shape: str,
    seconds: float,
    cost: tuple[float, float],
    note: str = "",
) -> Measurement:
    nbytes, flops = cost
    by = "memory" if nbytes / peaks.bytes_per_second >= flops / peaks.flops_per_second else "compute"
    return Measurement("step", model.name, kind, shape, seconds, peaks.bound(nbytes, flops), by, note)


# ---- our own steps ------------------------------------------------------------------------------------


class Bench:
    """The worker's step over random weights; ``tokens`` is the room of its pool."""

    def __init__(self, model: ModelShape, tokens: int, longest: int, device: str, recorded: bool):
        rope = Rope(500_000.0)
        self.spec = ModelSpec(
            architecture="Qwen2ForCausalLM" if model.qwen2 else "LlamaForCausalLM", qkv_bias=model.qwen2,
            vocab_size=model.vocab, hidden_size=model.hidden,
            layers=model.layers, heads=model.heads, kv_heads=model.kv_heads, head_dim=model.head_dim,
            intermediate_size=model.inner, max_positions=longest + 64, eos_ids=(), bos_id=None,
            tied_embeddings=True, norm_eps=1e-5, attention_scale=model.head_dim**-0.5, rope=rope,
            local_rope=rope, windows=(None,) * model.layers,
        )  # fmt: skip
        entries, end = [], 0
        self.device = device
        for tensor in wanted(self.spec):
            entries.append(TensorEntry(tensor.name, "bfloat16", tensor.shape, end))
            end += -(-int(np.prod(tensor.shape)) * 2 // 64) * 64
        self.entries = entries
        self.weights = torch.empty(end // 2, dtype=BF16, device=device).normal_(0, 0.02).view(torch.uint8)
        self.row_tokens = self.spec.tokens_per_row(BLOCK_BYTES, 2)
        rows = -(-tokens // self.row_tokens) + 256
        per_row = self.spec.blocks_per_row
        pool = torch.zeros(rows * per_row * BLOCK_BYTES, dtype=torch.uint8, device=device)
        setup = Setup(
            worker="bench", model=model.name, folder="", dtype="bfloat16", link="", device=device,
            pool_bytes=pool.numel(), block_bytes=BLOCK_BYTES, max_rows=rows, weights_bytes=end,
            tensors=entries, cores=1, max_context=longest + 64,
        )  # fmt: skip
        self.step = CudaStep(self.spec, setup, pool, self.weights, graphs=recorded)
        blocks = np.random.default_rng(0).permutation(rows * per_row).astype("<i4")  # scattered, as live
        self.step.learn(NewRows(np.arange(rows, dtype="<i4").tobytes(), blocks.tobytes()))
        self.step.ready(True)

    def sequences(self, batch: int, context: int, room: int = 1) -> list[Sequence]:
        """Sequences that count as computed, each with rows of its own for ``room`` tokens more."""
        each = -(-(context + room) // self.row_tokens)
        return [
            Sequence(_GREEDY, context, list(range(i * each, (i + 1) * each)), [5] * (context + 1), context)
            for i in range(batch)
        ]

    def decode(self, sequences: list[Sequence]) -> list[int]:
        """The same step again and again: nothing of a sequence moves."""
        return self.step.decode(sequences).result()[0]

    def ahead(self, sequences: list[Sequence], count: int) -> float:
        """Seconds a step of ``count``, each queued before the tokens of the one in front are read. The tokens
        that are fed lie on the device; positions stay where they are."""
        held = [sequence.history.pop() for sequence in sequences]
        for sequence in sequences:
            sequence.history.append(5)
        waiting = self.step.decode(sequences)
        for sequence in sequences:
            sequence.history.pop()  # from here on it is where the step before has put it
        begun = time.perf_counter()
        for _ in range(count):
            behind = self.step.decode(sequences)
            waiting.result()
            waiting = behind
        seconds = time.perf_counter() - begun
        waiting.result()
        for sequence, token in zip(sequences, held, strict=True):
            sequence.history.append(token)
        return seconds / count

    def prefill(self, sequence: Sequence, tokens: int) -> list[int]:
        return self.step.prefill([Span(sequence, 0, tokens)], [0]).result()[0]

    def forget(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.step.forget(sequence)


def median_of(step: Callable[[], object], times: int) -> float:
    """Seconds on the host's clock; ``step`` ends when its tokens are there. The first three are left out."""
    found = []
    for _ in range(times + 3):
        begun = time.perf_counter()
        step()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[3:])


def _recorded(peaks: Peaks, model: ModelShape, plan: Plan) -> Iterator[Measurement]:
    bench = Bench(model, plan.batches[-1] * (plan.contexts[-1] + 1), plan.contexts[-1], plan.device, True)
    for context in plan.contexts:
        for batch in plan.batches:
            sequences, shape = bench.sequences(batch, context), f"{batch} x {context}"
            cost = decode_cost(model, batch, context)
            seconds = median_of(lambda held=sequences: bench.decode(held), plan.times)  # type: ignore[misc]
            yield line(peaks, model, "decode step", shape, seconds, cost)
            seconds = statistics.median(bench.ahead(sequences, plan.times) for _ in range(3))
            yield line(peaks, model, "decode step, run ahead", shape, seconds, cost)
            seconds, note = profiled(bench, sequences)
            if seconds:
                yield line(peaks, model, "decode step, device busy", shape, seconds, cost, note)
            bench.forget(sequences)


def _eager(peaks: Peaks, model: ModelShape, plan: Plan) -> Iterator[Measurement]:
    bench = Bench(model, plan.batches[-1] * (plan.contexts[-1] + 1), plan.contexts[-1], plan.device, False)
    for context in plan.contexts:
        for batch in plan.batches:
            sequences = bench.sequences(batch, context)
            seconds = median_of(lambda held=sequences: bench.decode(held), plan.times)  # type: ignore[misc]
            cost = decode_cost(model, batch, context)
            yield line(peaks, model, "decode step, no graphs", f"{batch} x {context}", seconds, cost)
            bench.forget(sequences)


def _prefill(peaks: Peaks, model: ModelShape, plan: Plan) -> Iterator[Measurement]:
    for recorded in (True, False):
        yield from _prefilled(peaks, model, plan, recorded)
        free(plan)


def _prefilled(peaks: Peaks, model: ModelShape, plan: Plan, recorded: bool) -> Iterator[Measurement]:
    """Op by op all prompts; those that are graphs, as graphs."""
    bench = Bench(model, plan.prompts[-1] + 1, plan.prompts[-1], plan.device, recorded)
    kind = "prefill" if recorded else "prefill, no graphs"
    for tokens in plan.prompts:
        if recorded and tokens > PROMPTS[-1]:
            continue
        (sequence,) = bench.sequences(1, tokens)
        seconds = median_of(lambda held=sequence, n=tokens: bench.prefill(held, n), plan.times)  # type: ignore[misc]
        yield line(peaks, model, kind, str(tokens), seconds, prefill_cost(model, tokens))
        bench.forget([sequence])


# ---- where the time goes ------------------------------------------------------------------------------


def profiled(bench: Bench, sequences: list[Sequence]) -> tuple[float, str]:
    """Seconds of a step in which the device computes, and what of it is whose; 0 where nothing was seen."""
    kind = torch.profiler.ProfilerActivity
    activity = kind.CUDA if bench.device == "cuda" else kind.CPU
    with torch.profiler.profile(activities=[activity]) as profile:
        bench.ahead(sequences, _PROFILED)
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profile.events() or ()
        if event.device_type.name == ("CUDA" if bench.device == "cuda" else "CPU")
    ]
    if not events:
        print("the profiler saw no kernels: no account of gaps", file=sys.stderr)
        return 0.0, ""
    busy, note = account(events)
    return busy / (_PROFILED + 1), note


def account(events: Iterable[tuple[str, float, float]]) -> tuple[float, str]:
    """Seconds in which anything of ``events`` (name, start and end in microseconds) ran, and in words: the
    gaps between first and last, and the names with the largest parts."""
    by_name: Counter[str] = Counter()
    ordered = sorted(events, key=lambda event: event[1])
    busy, reached = 0.0, ordered[0][1]
    for name, start, end in ordered:
        by_name[name.split("<")[0].split("(")[0].split("::")[-1][-28:]] += end - start  # type: ignore[assignment]
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    span = reached - ordered[0][1]
    total = sum(by_name.values())
    largest = ", ".join(f"{name} {part / total:.0%}" for name, part in by_name.most_common(_NAMED))
    return busy / 1e6, f"gaps {1 - busy / span:.1%} of {span:.0f} us; {largest}"
