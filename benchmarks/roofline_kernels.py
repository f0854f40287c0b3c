"""The kernels one by one, with random weights and contexts, as fractions of what the device allows.

A case knows the bytes that must move and the operations that must be done at least once; everything else a
kernel spends is its own fault. Cases run on any device (on a CPU the references answer), times need a GPU.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from roofline_device import FULL, TINY, Peaks, Plan, free, seconds_of
from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.grouped import group
from muxd.kernels.paged_decode import AN_SM
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_states import PagedStates
from muxd.kernels.row_layout import uniform
from muxd.kernels.sampling import SamplingLines

BF16 = torch.bfloat16
BLOCK_BYTES = 8192
MOST_CYCLES = 1024


class ModelShape(NamedTuple):
    """What of a model a kernel sees."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocab: int
    qwen2: bool = False  # Llama with a bias on queries, keys and values

    @property
    def kv_bytes(self) -> int:
        """Of one token in one layer, bfloat16."""
        return 2 * self.kv_heads * self.head_dim * 2


SMALL = ModelShape("tiny", 64, 2, 4, 2, 32, 96, 300)  # of a rehearsal
MODELS = (
    ModelShape("Qwen2.5-0.5B", 896, 24, 14, 2, 64, 4864, 151_936, True),
    ModelShape("Llama-3.2-1B", 2048, 16, 32, 8, 64, 8192, 128_256),
    ModelShape("Qwen2.5-7B", 3584, 28, 28, 4, 128, 18_944, 152_064, True),
    ModelShape("Llama-3-8B", 4096, 32, 32, 8, 128, 14_336, 128_256),
)


class Mixture(NamedTuple):
    """Experts of a layer."""

    name: str
    experts: int
    chosen: int
    inner: int
    hidden: int


MIXTURES = (
    Mixture("Qwen3-30B-A3B", 128, 8, 768, 2048),
    Mixture("Mixtral-8x7B", 8, 2, 14_336, 4096),
    Mixture("gpt-oss-20b", 32, 4, 2880, 2880),
)


class Recurrent(NamedTuple):
    """A layer that keeps a state."""

    name: str
    key_heads: int
    value_heads: int
    dim: int  # of keys and of values


# The first are the defaults of transformers' Qwen3_5TextConfig.
RECURRENT = (Recurrent("16 and 32 heads", 16, 32, 128), Recurrent("16 and 48 heads", 16, 48, 128))


class Case(NamedTuple):
    """One kernel at one shape. ``step(i)`` runs it once on the i-th of ``cycles`` sets of inputs."""

    kernel: str
    shape: str
    nbytes: float
    flops: float
    cycles: int
    step: Callable[[int], object]


class Measurement(NamedTuple):
    """One line of the report; times in seconds."""

    part: str
    model: str
    kernel: str
    shape: str
    seconds: float
    bound: float
    bound_by: str  # "memory" or "compute"
    note: str = ""

    @property
    def fraction(self) -> float:
        """Of the roofline: 1 is as fast as the device allows."""
        return self.bound / self.seconds


def measure(peaks: Peaks, models: tuple[ModelShape, ...], plan: Plan) -> Iterator[Measurement]:
    """Every case of every model, on the plan's device."""
    made = [(model.name, make) for model in models for make in cases(model, plan)]
    made += [(one.name, make) for one in mixtures(plan) for make in expert_cases(one, plan)]
    made += [(one.name, make) for one in recurrent(plan) for make in delta_cases(one, plan)]
    for name, make in made:
        case = make()
        seconds = seconds_of(plan, case.step, case.cycles)
        memory = case.nbytes / peaks.bytes_per_second >= case.flops / peaks.flops_per_second
        bound = peaks.bound(case.nbytes, case.flops)
        yield Measurement(
            *("kernels", name, case.kernel, case.shape),
            *(seconds, bound, "memory" if memory else "compute"),
        )
        del case
        free(plan)


def mixtures(plan: Plan) -> tuple[Mixture, ...]:
    return (Mixture("tiny", 6, 2, 24, 64),) if plan is TINY else MIXTURES


def recurrent(plan: Plan) -> tuple[Recurrent, ...]:
    return (Recurrent("tiny", 1, 2, 16),) if plan is TINY else RECURRENT


def expert_cases(mixture: Mixture, plan: Plan) -> Iterator[Callable[[], Case]]:
    """As ``cases``."""
    for n in (*plan.batches, *plan.prompts):
        yield partial(experts, mixture, plan.device, n)


def delta_cases(shape: Recurrent, plan: Plan) -> Iterator[Callable[[], Case]]:
    """As ``cases``."""
    for n in plan.batches:
        yield partial(delta, shape, plan.device, n, 1)
    for n in plan.prompts:
        yield partial(delta, shape, plan.device, 1, n)


def delta(shape: Recurrent, device: str, batch: int, tokens: int) -> Case:
    """One layer's convolution and rule: states in and out once, and the projection. Of one token each as in a
    decode step, of more as in a prompt that has begun."""
    heads, size = shape.value_heads, shape.dim
    channels, n = (2 * shape.key_heads + heads) * size, batch * tokens
    state = heads * size * size * 4
    nbytes = 2 * batch * (state + 3 * channels * 4) + n * (channels * 2 + heads * size * 4)
    cycles = _cycles(nbytes, device)
    lines = BLOCK_BYTES // (4 * size)
    blocks = heads * -(-size // lines) + -(-3 * channels * 4 // BLOCK_BYTES)
    memory = torch.zeros(cycles * batch * blocks, BLOCK_BYTES // 4, device=device)
    order = torch.randperm(len(memory), device=device).int()
    states = PagedStates(memory, order.view(-1, 1), size, size)
    rows = torch.arange(len(memory), dtype=torch.int32, device=device).view(cycles, batch, blocks)
    mixed = torch.randn(n, channels, device=device).to(BF16)
    decay, beta = -torch.rand(n, heads, device=device), torch.rand(n, heads, device=device)
    tokens_of = mixed, decay, beta, torch.randn(channels, 4, device=device)
    places = torch.ones(batch, dtype=torch.int32, device=device)
    starts = torch.arange(batch + 1, dtype=torch.int32, device=device) * tokens

    def step(i: int) -> Tensor:
        if tokens == 1:
            return ops.delta_decode(*tokens_of, states, 0, rows[i], places)
        return ops.delta_prefill(*tokens_of, states, 0, rows[i], starts, places)

    told = f"batch {batch}" if tokens == 1 else f"{tokens} tokens"
    return Case("delta rule", told, nbytes, 6.0 * n * heads * size * size, cycles, step)


def cases(model: ModelShape, plan: Plan) -> Iterator[Callable[[], Case]]:
    """Makers of all cases, so that one case's memory is free before the next takes its own."""
    device = plan.device
    for context in plan.contexts:
        for batch in plan.batches:
            yield partial(decode_attention, model, device, batch, context)
    for n in plan.prompts:
        yield partial(prefill_attention, model, device, n)
    for n in (*plan.batches, *plan.prompts):
        yield partial(rms_norm, model, device, n)
        yield partial(rope_write, model, device, n)
        yield partial(silu_gate, model, device, n)
    for batch in plan.batches:
        for how in ("greedy", "temperature", "top-p", "top-p, flat"):
            yield partial(sample, model, device, batch, how)


def decode_attention(model: ModelShape, device: str, batch: int, context: int) -> Case:
    """One layer's attention of a decode step."""
    nbytes = batch * (context * model.kv_bytes + 2 * model.heads * model.head_dim * 2)
    cycles = _cycles(nbytes, device)
    pool, rows = filled_pool(model, device, batch, context, cycles)
    q = torch.randn(batch, model.heads, model.head_dim, device=device).to(BF16)
    lengths = torch.full((batch,), context, dtype=torch.int32, device=device)
    plan = ops.plan_decode(lengths, model.kv_heads, programs=AN_SM * sms_of(device))  # one a step

    def step(i: int) -> Tensor:
        return ops.decode_attention(q, pool, i, rows, lengths, plan, scale=model.head_dim**-0.5)

    flops = 4 * batch * context * model.heads * model.head_dim
    return Case("decode attention", f"batch {batch}, context {context}", nbytes, flops, cycles, step)


def prefill_attention(model: ModelShape, device: str, n: int) -> Case:
    """One layer's causal attention of one prompt."""
    nbytes = n * (model.kv_bytes + 2 * model.heads * model.head_dim * 2)
    cycles = min(8, _cycles(nbytes, device))
    pool, rows = filled_pool(model, device, 1, n, cycles)
    q = torch.randn(n, model.heads, model.head_dim, device=device).to(BF16)
    starts = torch.tensor([0, n], dtype=torch.int32, device=device)
    cached = torch.zeros(1, dtype=torch.int32, device=device)

    def step(i: int) -> Tensor:
        return ops.prefill_attention(q, pool, i, rows, starts, cached, scale=model.head_dim**-0.5)

    return Case(
        "prefill attention", f"{n} tokens", nbytes, 2 * model.heads * model.head_dim * n**2, cycles, step
    )


def rms_norm(model: ModelShape, device: str, n: int) -> Case:
    """With the residual: two tensors in, two out."""
    nbytes = 4 * n * model.hidden * 2
    cycles = _cycles(nbytes, device)
    x, residual = (torch.randn(cycles, n, model.hidden, device=device).to(BF16) for _ in range(2))
    weight = torch.randn(model.hidden, device=device).to(BF16)

    def step(i: int) -> Tensor:
        return ops.rms_norm(x[i], weight, 1e-6, before=residual[i])

    return Case("rms norm + residual", f"{n} tokens", nbytes, 0, cycles, step)


def rope_write(model: ModelShape, device: str, n: int) -> Case:
    """The projection in; queries and the keys and values in the pool out; the angles once."""
    lines = model.heads + 2 * model.kv_heads
    nbytes = n * (2 * lines + 2) * model.head_dim * 2
    cycles = _cycles(nbytes, device)
    pool, rows = filled_pool(model, device, 1, n, 1)
    qkv = torch.randn(cycles, n, lines, model.head_dim, device=device).to(BF16)
    cos, sin = (torch.randn(n, 1, model.head_dim, device=device).to(BF16) for _ in range(2))
    positions = torch.arange(n, dtype=torch.int32, device=device)
    owners = torch.zeros(n, dtype=torch.int32, device=device)

    def step(i: int) -> Tensor:
        return ops.rope_and_write(qkv[i], cos, sin, pool, 0, rows, positions, owners)

    return Case("rope + write", f"{n} tokens", nbytes, 0, cycles, step)


def silu_gate(model: ModelShape, device: str, n: int) -> Case:
    """Two tensors in, one out."""
    nbytes = 3 * n * model.inner * 2
    cycles = _cycles(nbytes, device)
    both = torch.randn(cycles, n, 2 * model.inner, device=device).to(BF16)
    return Case("silu gate", f"{n} tokens", nbytes, 0, cycles, lambda i: ops.silu_gate(both[i]))


def experts(mixture: Mixture, device: str, n: int) -> Case:
    """Gate and up of the experts that ``n`` tokens have chosen, each read once."""
    outputs, fan = 2 * mixture.inner, mixture.chosen
    chosen = torch.rand(n, mixture.experts, device=device).topk(fan, -1).indices
    groups = group(chosen, mixture.experts)
    used = int((groups.starts.diff() > 0).sum())
    nbytes = used * outputs * mixture.hidden * 2 + n * mixture.hidden * 2 + n * fan * outputs * 2
    cycles = min(4, _cycles(nbytes, device))
    weight = torch.randn(cycles, mixture.experts, outputs, mixture.hidden, device=device, dtype=BF16)
    x = torch.randn(n, mixture.hidden, device=device, dtype=BF16)
    flops = 2.0 * n * fan * outputs * mixture.hidden

    def step(i: int) -> object:
        return ops.grouped_linear(x, weight[i], groups, gather=True)

    return Case("grouped", f"{n} tokens", nbytes, flops, cycles, step)


def sample(model: ModelShape, device: str, batch: int, how: str) -> Case:
    """At least every logit is read once. "flat": a nucleus beyond the list, which is searched."""
    nbytes = batch * model.vocab * 2
    cycles = min(16, _cycles(nbytes, device))
    spread = 1.0 if how.endswith("flat") else 6.0
    logits = (torch.randn(cycles, batch, model.vocab, device=device) * spread).to(BF16)
    counts = torch.zeros(1, model.vocab, dtype=torch.int32, device=device)
    asked = {"temperature": 0.0 if how == "greedy" else 0.8, "top_p": 0.9 if how.startswith("top") else 1.0}
    lines = alike(batch, device, **asked)
    greedy, filtered = how == "greedy", how.startswith("top")

    def step(i: int) -> Tensor:
        return ops.sample(logits[i], lines, counts, greedy=greedy, filtered=filtered)

    return Case(f"sample, {how}", f"batch {batch}", nbytes, 0, cycles, step)


def alike(batch: int, device: str, **asked: float) -> SamplingLines:
    """Lines that differ in their seeds alone; what is not ``asked`` for is off."""

    def column(name: str, value: float, dtype: torch.dtype) -> Tensor:
        return torch.full((batch,), asked.get(name, value), dtype=dtype, device=device)

    return SamplingLines(
        temperature=column("temperature", 0, torch.float32),
        top_k=column("top_k", 0, torch.int32),
        top_p=column("top_p", 1, torch.float64),
        min_p=column("min_p", 0, torch.float64),
        presence=column("presence", 0, torch.float32),
        frequency=column("frequency", 0, torch.float32),
        repetition=column("repetition", 1, torch.float32),
        seed=torch.arange(batch, device=device),
        position=column("position", 5, torch.int32),
        free_from=column("free_from", 0, torch.int32),
        banned=torch.full((batch, 1), -1, dtype=torch.int32, device=device),
        slot=column("slot", -1, torch.int32),
    )


def filled_pool(
    model: ModelShape, device: str, batch: int, tokens: int, layers: int, dtype: torch.dtype = BF16
) -> tuple[PagedPool, Tensor]:
    """A full pool, its head blocks handed out in random order as after hours of service."""
    per_block = BLOCK_BYTES // (2 * model.head_dim * 2)
    width, table_width = -(-tokens // per_block), layers * model.kv_heads
    count = batch * width * table_width
    blocks = torch.empty(count, BLOCK_BYTES // 2, dtype=dtype, device=device).normal_()
    table = torch.randperm(count, device=device).to(torch.int32).view(-1, table_width)
    rows = torch.randperm(batch * width, device=device).to(torch.int32).view(batch, width)
    return PagedPool(blocks, table, uniform(layers, model.kv_heads, model.head_dim)), rows


def _cycles(nbytes: int, device: str) -> int:
    cold = (FULL if device == "cuda" else TINY).cold_bytes
    return max(2, min(MOST_CYCLES, -(-cold // nbytes)))


def sms_of(device: str) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device == "cuda" else 1
