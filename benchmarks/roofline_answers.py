"""Whole answers, side by side: this worker's steps, transformers' generate and its continuous batching.

The same weights, prompts, device and run: ``new`` greedy tokens for each of ``batch`` random prompts.
generate runs with SDPA and a static cache, which it compiles. What is compared: tokens a second of the whole
batch, prefill included; the note also says how many first tokens agree: near ties fall either way.
"""

import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from roofline_device import Peaks, Plan, free
from roofline_kernels import BF16, Measurement, ModelShape
from roofline_step import Bench, decode_cost, prefill_cost

from muxd.models.tensors import wanted
from muxd.worker.mapped import Views
from muxd.worker.sequence import Sequence, Span

_BUDGET = 8192  # tokens of one prefill
_ROUNDS = 3  # after one that is not counted: it compiles

Answers = list[list[int]]


def measure(peaks: Peaks, models: tuple[ModelShape, ...], plan: Plan) -> Iterator[Measurement]:
    """Every shape of every model, on the plan's device."""
    for model in models:
        longest = plan.contexts[-1] + plan.new
        bench = Bench(model, plan.batches[-1] * (longest + 32), longest, plan.device, recorded=True)
        peers = _peers(model, bench, plan, longest)
        for context in plan.contexts:
            for batch in plan.batches:
                yield from _shape(peaks, model, plan, bench, peers, batch, context)
        del bench, peers
        free(plan)


def _shape(
    peaks: Peaks,
    model: ModelShape,
    plan: Plan,
    bench: Bench,
    peers: dict[str, Any],
    batch: int,
    context: int,
) -> Iterator[Measurement]:
    draw = random.Random(batch * context)
    prompts = [[draw.randrange(3, model.vocab) for _ in range(context)] for _ in range(batch)]
    once = prefill_cost(model, context)
    step = decode_cost(model, batch, context + plan.new // 2)
    bound = peaks.bound(once[0], batch * once[1]) + (plan.new - 1) * peaks.bound(*step)
    shape = f"{batch} x ({context} + {plan.new})"

    def told(name: str, seconds: float, note: str) -> Measurement:
        rate = f"{batch * plan.new / seconds:,.0f} tokens/s"
        return Measurement("answers", model.name, name, shape, seconds, bound, "both", f"{rate}{note}")

    ours, wanted_tokens = timed(plan, lambda: answer(bench, prompts, plan.new))
    yield told("answers", ours, "")
    for name, peer in peers.items():
        try:
            seconds, found = timed(plan, lambda ask=peer.ask: ask(prompts, plan.new))  # type: ignore[misc]
        except Exception as error:  # a peer that cannot do it is no reason to stop
            print(f"{name}, {shape}: {type(error).__name__}: {str(error)[:200]}", file=sys.stderr)
            free(plan)
            continue
        finally:
            peer.close()
        same = sum(a[0] == b[0] for a, b in zip(wanted_tokens, found, strict=True))
        yield told(name, seconds, f", muxd {seconds / ours:.2f} times as many; {same}/{batch} begin alike")


def timed(plan: Plan, play: Callable[[], Answers]) -> tuple[float, Answers]:
    """Median seconds, and what it answered. Raises ValueError for answers that are not there in full."""
    found = play()
    if any(len(tokens) != plan.new for tokens in found):
        raise ValueError(f"answers of {sorted({len(tokens) for tokens in found})} tokens, not {plan.new}")
    times = []
    for _ in range(_ROUNDS if plan.device == "cuda" else 1):
        if plan.device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        found = play()
        times.append(time.perf_counter() - begun)
    return statistics.median(times), found


# ---- this worker --------------------------------------------------------------------------------------


@torch.inference_mode()
def answer(bench: Bench, prompts: Answers, new: int) -> Answers:
    """Prefill in batches of ``_BUDGET`` tokens, then decode, each step queued before the last is read."""
    context = len(prompts[0])
    sequences = bench.sequences(len(prompts), context, new)
    for sequence, prompt in zip(sequences, prompts, strict=True):
        sequence.history, sequence.cached = list(prompt), context
    each = max(1, _BUDGET // context)
    for first in range(0, len(prompts), each):
        part = sequences[first : first + each]
        flight = bench.step.prefill([Span(s, 0, context) for s in part], range(len(part)))
        _took(part, flight.result()[0])
    waiting = None
    for _ in range(new - 1):
        flight = bench.step.decode(sequences)
        for sequence in sequences:
            sequence.cached += 1
        if waiting is not None:
            _took(sequences, waiting.result()[0])
        waiting = flight
    if waiting is not None:
        _took(sequences, waiting.result()[0])
    bench.forget(sequences)
    return [sequence.history[context:] for sequence in sequences]


def _took(sequences: list[Sequence], tokens: list[int]) -> None:
    for sequence, token in zip(sequences, tokens, strict=True):
        sequence.history.append(token)


# ---- transformers -------------------------------------------------------------------------------------


class _Generate:
    def __init__(self, theirs: Any, device: str):
        self._theirs, self._device = theirs, device

    @torch.inference_mode()
    def ask(self, prompts: Answers, new: int) -> Answers:
        ids = torch.tensor(prompts, device=self._device)
        if self._theirs.config._attn_implementation != "sdpa":  # continuous batching switches to a paged one
            self._theirs.set_attn_implementation("sdpa")
        made = self._theirs.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False,
            cache_implementation="static",
        )  # fmt: skip
        return made[:, ids.shape[1] :].tolist()  # type: ignore[no-any-return]

    def close(self) -> None:
        pass


class _Continuous:
    """Its cache is made and its graphs are captured in the round that is not counted; no prompt is cached."""

    def __init__(self, theirs: Any, device: str):
        from transformers import ContinuousBatchingConfig, GenerationConfig

        small: dict[str, Any] = {"num_blocks": 8, "max_batch_tokens": 256} if device == "cpu" else {}
        self._theirs = theirs
        self._generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
        self._batching = ContinuousBatchingConfig(allow_block_sharing=False, **small)

    def ask(self, prompts: Answers, new: int) -> Answers:
        self._generation.max_new_tokens = new
        made = self._theirs.generate_batch(
            inputs=prompts, generation_config=self._generation, continuous_batching_config=self._batching,
            persistent_manager=True,
        )  # fmt: skip
        by_prompt: dict[tuple[int, ...], Answers] = {}
        for output in made.values():
            by_prompt.setdefault(tuple(output.prompt_ids), []).append(list(output.generated_tokens))
        return [by_prompt[tuple(prompt)].pop() for prompt in prompts]

    def close(self) -> None:
        self._theirs.destroy_cached_continuous_batching_manager()


_PEERS = {"transformers generate": _Generate, "transformers continuous": _Continuous}


def _peers(model: ModelShape, bench: Bench, plan: Plan, longest: int) -> dict[str, Any]:
    """Over one model with our weights; those that this transformers has."""
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError:
        print("transformers is not installed: nothing to compare with", file=sys.stderr)
        return {}
    config = AutoConfig.for_model(
        "qwen2" if model.qwen2 else "llama",
        vocab_size=model.vocab, hidden_size=model.hidden, intermediate_size=model.inner,
        num_hidden_layers=model.layers, num_attention_heads=model.heads, head_dim=model.head_dim,
        num_key_value_heads=model.kv_heads, max_position_embeddings=longest + 64, rms_norm_eps=1e-5,
        rope_theta=500_000.0, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=None,
        attn_implementation="sdpa",
    )  # fmt: skip
    with torch.device(plan.device):
        theirs = AutoModelForCausalLM.from_config(config).to(BF16).eval()
    _copy_weights(bench, theirs)
    found = {}
    for name, make in _PEERS.items():
        try:
            found[name] = make(theirs, plan.device)
        except (ImportError, TypeError) as error:
            print(f"{name}: not in this transformers: {error}", file=sys.stderr)
    return found


def _copy_weights(bench: Bench, theirs: Any) -> None:
    """Ours, unstacked under their names."""
    views, state = Views(bench.entries, bench.weights), theirs.state_dict()
    with torch.no_grad():
        for tensor in wanted(bench.spec):
            parts = views.tensor(tensor.name).split([part.shape[0] for part in tensor.parts])
            for part, rows in zip(tensor.parts, parts, strict=True):
                state[part.stored].copy_(rows)
