"""Whole steps of the worker's own code, with random weights: decode with and without graphs, and prefill.

A step is what a command costs a worker: upload, model, head, argmax, tokens back on the host. Its bound is
the least it must read and compute: every weight once, every token's K and V once. Beside it transformers'
generate on the same shape, with a static cache and SDPA, for the time of one of its tokens.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from roofline_device import Peaks
from roofline_kernels import BF16, BLOCK_BYTES, Measurement, ModelShape

from muxd.messages import NewRows, Sampling, Setup, TensorEntry
from muxd.models.rope import Rope
from muxd.models.spec import ModelSpec
from muxd.models.tensors import wanted
from muxd.worker.cuda_step import CudaStep
from muxd.worker.sequence import Sequence, Span

BATCHES, CONTEXTS, PROMPTS = (1, 8, 32, 128), (512, 2048), (512, 2048, 8192)
_TIMES = 20  # steps of which the median counts
_NEW = 64  # tokens that transformers makes after the first
_GREEDY = Sampling(temperature=0.0)


def measure(peaks: Peaks, models: tuple[ModelShape, ...]) -> Iterator[Measurement]:
    """Every case of every model, on the current CUDA device."""
    for model in models:
        for part in (
            partial(_decode, recorded=True),
            partial(_decode, recorded=False),
            _prefill,
            _transformers,
        ):
            with torch.inference_mode():
                yield from part(peaks, model)
            gc.collect()
            torch.cuda.empty_cache()


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
    peaks: Peaks, model: ModelShape, kind: str, shape: str, seconds: float, cost: tuple[float, float]
) -> Measurement:
    nbytes, flops = cost
    memory = nbytes / peaks.bytes_per_second >= flops / peaks.flops_per_second
    bound = peaks.bound(nbytes, flops)
    return Measurement("step", model.name, kind, shape, seconds, bound, "memory" if memory else "compute")


# ---- our own steps ------------------------------------------------------------------------------------


class Bench:
    """The worker's step over random weights; ``tokens`` is the room of its pool."""

    def __init__(self, model: ModelShape, tokens: int, longest: int, device: str, recorded: bool):
        rope = Rope(500_000.0)
        self.spec = ModelSpec(
            architecture="LlamaForCausalLM", vocab_size=model.vocab, hidden_size=model.hidden,
            layers=model.layers, heads=model.heads, kv_heads=model.kv_heads, head_dim=model.head_dim,
            intermediate_size=model.inner, max_positions=longest + 64, eos_ids=(), bos_id=None,
            tied_embeddings=True, norm_eps=1e-5, attention_scale=model.head_dim**-0.5, rope=rope,
            local_rope=rope, windows=(None,) * model.layers,
        )  # fmt: skip
        entries, end = [], 0
        for tensor in wanted(self.spec):
            entries.append(TensorEntry(tensor.name, "bfloat16", tensor.shape, end))
            end += -(-int(np.prod(tensor.shape)) * 2 // 64) * 64
        weights = torch.empty(end // 2, dtype=BF16, device=device).normal_(0, 0.02).view(torch.uint8)
        self.row_tokens = self.spec.tokens_per_row(BLOCK_BYTES, 2)
        rows = -(-tokens // self.row_tokens) + 256
        per_row = self.spec.blocks_per_row
        pool = torch.zeros(rows * per_row * BLOCK_BYTES, dtype=torch.uint8, device=device)
        setup = Setup(
            worker="bench", model=model.name, folder="", dtype="bfloat16", link="", device=device,
            pool_bytes=pool.numel(), block_bytes=BLOCK_BYTES, max_rows=rows, weights_bytes=end,
            tensors=entries, cores=1, max_context=longest + 64,
        )  # fmt: skip
        self.step = CudaStep(self.spec, setup, pool, weights, graphs=recorded)
        blocks = np.random.default_rng(0).permutation(rows * per_row).astype("<i4")  # scattered, as live
        self.step.learn(NewRows(np.arange(rows, dtype="<i4").tobytes(), blocks.tobytes()))
        self.step.ready()

    def sequences(self, batch: int, context: int) -> list[Sequence]:
        """Sequences that count as computed, each with rows of its own."""
        each = -(-(context + 1) // self.row_tokens)
        return [
            Sequence(_GREEDY, context, list(range(i * each, (i + 1) * each)), [5] * (context + 1), context)
            for i in range(batch)
        ]

    def decode(self, sequences: list[Sequence]) -> list[int]:
        hidden = self.step.decode(sequences)
        return self.step.sample(self.step.model.logits(hidden), sequences)[0]

    def prefill(self, sequence: Sequence, tokens: int) -> list[int]:
        hidden = self.step.prefill([Span(sequence, 0, tokens)], [0])
        return self.step.sample(self.step.model.logits(hidden), [sequence])[0]

    def forget(self, sequences: list[Sequence]) -> None:
        for sequence in sequences:
            self.step.forget(sequence)


def median_of(step: Callable[[], object], times: int = _TIMES) -> float:
    """Seconds on the host's clock; ``step`` ends when its tokens are there. The first three are left out."""
    found = []
    for _ in range(times + 3):
        begun = time.perf_counter()
        step()
        found.append(time.perf_counter() - begun)
    return statistics.median(found[3:])


def _decode(peaks: Peaks, model: ModelShape, recorded: bool) -> Iterator[Measurement]:
    bench = Bench(model, BATCHES[-1] * (CONTEXTS[-1] + 1), CONTEXTS[-1], "cuda", recorded)
    for context in CONTEXTS:
        for batch in BATCHES:
            sequences = bench.sequences(batch, context)
            seconds = median_of(lambda held=sequences: bench.decode(held))
            bench.forget(sequences)
            kind = "decode step" if recorded else "decode step, no graphs"
            yield line(
                peaks, model, kind, f"{batch} x {context}", seconds, decode_cost(model, batch, context)
            )


def _prefill(peaks: Peaks, model: ModelShape) -> Iterator[Measurement]:
    bench = Bench(model, PROMPTS[-1] + 1, PROMPTS[-1], "cuda", recorded=False)
    for tokens in PROMPTS:
        (sequence,) = bench.sequences(1, tokens)
        seconds = median_of(lambda held=sequence, n=tokens: bench.prefill(held, n))
        bench.forget([sequence])
        yield line(peaks, model, "prefill", str(tokens), seconds, prefill_cost(model, tokens))


# ---- transformers -------------------------------------------------------------------------------------


def _transformers(peaks: Peaks, model: ModelShape) -> Iterator[Measurement]:
    """Seconds of one token of ``generate``: a long answer less a short one, over the tokens between."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        print("transformers is not installed: nothing to compare with", file=sys.stderr)
        return
    config = LlamaConfig(
        vocab_size=model.vocab, hidden_size=model.hidden, intermediate_size=model.inner,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, head_dim=model.head_dim,
        num_key_value_heads=model.kv_heads, max_position_embeddings=CONTEXTS[-1] + _NEW + 8,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device("cuda"):
        theirs = LlamaForCausalLM(config).to(BF16).eval()
    for context in CONTEXTS:
        for batch in BATCHES:
            prompt = torch.full((batch, context), 5, device="cuda")

            def answer(new: int, prompt: torch.Tensor = prompt) -> None:
                theirs.generate(
                    prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new, min_new_tokens=new,
                    do_sample=False, cache_implementation="static",
                )  # fmt: skip
                torch.cuda.synchronize()

            try:
                seconds = (median_of(lambda: answer(_NEW + 1), 3) - median_of(lambda: answer(1), 3)) / _NEW
            except torch.cuda.OutOfMemoryError:
                continue
            cost = decode_cost(model, batch, context)
            yield line(peaks, model, "transformers generate", f"{batch} x {context}", seconds, cost)
