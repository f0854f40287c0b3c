"""The references of the device kernels against what already serves on the CPU, and the one dispatch."""

import inspect
import subprocess
import sys
from importlib import import_module
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.kernel_cases import Shape, check_decode, check_prefill, paged, sampling_lines

from muxd.kernels import (
    feed,
    gated,
    grouped,
    ops,
    paged_decode,
    paged_delta,
    paged_prefill,
    rope_write,
    row_table,
    sampling,
)
from muxd.kernels import rms_norm as norm
from muxd.kernels import sinks as sinking
from muxd.kernels.attention import prefill_attention
from muxd.kernels.head_blocks import HeadBlocks
from muxd.kernels.paged_decode import LEAST_UNITS, UNIT
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.rms_norm import OffsetRmsNorm, RmsNorm, rms_norm
from muxd.kernels.rotary import angles, rotate_
from muxd.kernels.row_layout import uniform
from muxd.messages import Sampling
from muxd.worker.sampler import sample as sample_on_the_host
from muxd.worker.sequence import Sequence


def test_a_pool_is_what_head_blocks_write() -> None:
    """Both sides must agree on where a byte lies: the daemon's blocks outlive the code that filled them."""
    memory, generator = torch.zeros(12 * 4096, dtype=torch.uint8), torch.Generator().manual_seed(0)
    table = torch.randperm(12, generator=generator).int().view(3, 4)
    pool = PagedPool.over(memory, 4096, table, uniform(2, 2, 24), torch.float32)
    blocks = HeadBlocks(memory, 4096, 24, torch.float32)
    assert blocks.tokens == pool.tokens == 21
    qkv = torch.randn(2, 6, 24, generator=generator)
    turn = angles(torch.tensor([3, 40]), torch.rand(12, generator=generator), torch.float32)
    rows = torch.tensor([[2, 0]], dtype=torch.int32)
    at, owners = torch.tensor([3, 40], dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    expected = rotate_(qkv[:, :4].clone(), *turn)
    q = ops.rope_and_write(qkv, *turn, pool, 1, rows, at, owners)
    torch.testing.assert_close(q, expected[:, :2])
    keys, values = torch.empty(2, 21 * 24), torch.empty(2, 21 * 24)
    blocks.gather((table[2, 2:], table[2, 2:]), keys, values)
    torch.testing.assert_close(keys.view(2, 21, 24)[:, 3], expected[0, 2:])
    assert torch.equal(values.view(2, 21, 24)[:, 3], qkv[0, 4:])
    blocks.gather((table[0, 2:], table[0, 2:]), keys, values)
    torch.testing.assert_close(keys.view(2, 21, 24)[:, 40 - 21], expected[1, 2:])


@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("window", [None, 20])
def test_attention_references_are_the_plain_formula(window: int | None, sunk: bool) -> None:
    """Decode is prefill of the last token, and prefill is what the CPU serves."""
    shape, generator = Shape(32, 2, 3, window=window), torch.Generator().manual_seed(1)
    pool, rows = paged(shape, [57], generator)
    q = torch.randn(57, 6, 32, generator=generator)
    keys, values = pool.seen(1, rows[0], 57)
    at = torch.arange(57)
    hidden = (at > at[:, None]) | (at <= at[:, None] - (window or 99))
    mask = torch.zeros(57, 57).masked_fill_(hidden, float("-inf"))
    sinks = torch.linspace(-2, 3, 6) if sunk else None
    wanted = prefill_attention(q.transpose(0, 1), keys, values, mask, 0.3, sinks=sinks)
    wanted = wanted.transpose(0, 1).flatten(1)
    options: dict[str, Any] = {"scale": 0.3, "window": window, "sinks": sinks}
    starts, cached = torch.tensor([0, 57], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    found = ops.prefill_attention(q, pool, 1, rows, starts, cached, **options)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    length = torch.tensor([57], dtype=torch.int32)
    plan = ops.plan_decode(length, 2, window=window)
    last = ops.decode_attention(q[56:], pool, 1, rows, length, plan, **options)
    torch.testing.assert_close(last, wanted[56:], atol=1e-5, rtol=1e-4)


def test_a_sink_is_a_key_that_gives_nothing() -> None:
    scores, sinks = torch.randn(2, 3, 5), torch.randn(2, 3, 1)
    found = sinking.weights(scores, sinks)
    wanted = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp())
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(sinking.weights(scores, sinks - 1e4), scores.softmax(-1))


def test_a_wrong_kernel_does_not_pass() -> None:
    """The comparisons themselves: a kernel that forgets the window, or one key, must fail them."""

    class Forgets:
        plan_decode = staticmethod(paged_decode.plan_decode)

        @staticmethod
        def decode_attention(
            q: Any, pool: Any, layer: int, rows: Any, lengths: Any, *rest: Any, **how: Any
        ) -> Any:
            return paged_decode.decode_attention(
                q, pool, layer, rows, (lengths - 1).clamp(min=0), *rest, **how
            )

        @staticmethod
        def prefill_attention(*arguments: Any, **options: Any) -> Any:
            return paged_prefill.prefill_attention(*arguments, **{**options, "window": None})

    with pytest.raises(AssertionError):
        check_decode(Forgets, Shape(64, 1, 2), [50, 70], 1)  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        check_prefill(Forgets, Shape(64, 1, 2, window=40), [(0, 90)])  # type: ignore[arg-type]


@settings(max_examples=50)
@given(st.integers(0, 20), st.integers(1, 9), st.data())
def test_every_pair_is_in_its_experts_group_once(n: int, experts: int, data: st.DataObject) -> None:
    fan = data.draw(st.integers(1, experts))
    rows = [data.draw(st.permutations(range(experts)))[:fan] for _ in range(n)]
    chosen = torch.tensor(rows, dtype=torch.int64).view(n, fan)
    groups = grouped.group(chosen, experts)
    assert groups.starts[0] == 0
    assert groups.starts[-1] == n * fan
    for expert in range(experts):
        own = groups.order[groups.starts[expert] : groups.starts[expert + 1]]
        assert own.tolist() == (chosen.flatten() == expert).nonzero().flatten().tolist()


def test_the_grouped_reference_is_a_product_with_each_ones_own_matrix() -> None:
    x, weight, bias = torch.randn(5, 6), torch.randn(4, 3, 6), torch.randn(4, 3)
    chosen = torch.tensor([[0, 3], [3, 0], [1, 3], [3, 1], [0, 1]])
    groups = grouped.group(chosen, 4)
    wanted = torch.einsum("nh,nkoh->nko", x, weight[chosen]).view(10, 3)[groups.order]
    torch.testing.assert_close(ops.grouped_linear(x, weight, groups, gather=True), wanted)
    sorted_rows = x.repeat_interleave(2, 0)[groups.order]
    found = ops.grouped_linear(sorted_rows, weight, groups, bias=bias)
    torch.testing.assert_close(found, wanted + bias[chosen.flatten()[groups.order]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_reference_is_the_norm_that_serves(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 48).to(dtype), torch.randn(48).to(dtype)
    close: dict[str, Any] = (
        {"atol": 1e-6, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0, "rtol": 1 / 64}
    )
    torch.testing.assert_close(rms_norm(x, weight, 1e-6), RmsNorm(weight, 1e-6)(x), **close)
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-6, offset=True), OffsetRmsNorm(weight, 1e-6)(x), **close
    )
    stream = torch.randn(5, 48).to(dtype)
    summed = x + stream
    torch.testing.assert_close(
        ops.rms_norm(x, weight, 1e-6, before=stream), RmsNorm(weight, 1e-6)(summed), **close
    )
    assert torch.equal(stream, summed)


HOST = st.builds(
    Sampling,
    temperature=st.just(0.0) | st.floats(0.05, 3),
    top_p=st.floats(0.01, 1) | st.just(1.0),
    top_k=st.integers(0, 40) | st.integers(300, 900),
    seed=st.integers(0, 2**64 - 1),
    presence_penalty=st.just(0.0) | st.floats(-2, 2),
    frequency_penalty=st.just(0.0) | st.floats(-2, 2),
    repetition_penalty=st.just(1.0) | st.floats(0.5, 2),
    min_tokens=st.integers(0, 20),
    banned_first=st.lists(st.integers(0, 499), max_size=3).map(tuple),
)


@settings(max_examples=examples(150))
@given(HOST, st.just(0.0) | st.floats(0.0001, 1), st.integers(0, 60), st.integers(0, 60), st.integers(0, 50))
def test_sampling_reference_is_the_sampler_that_serves(
    host: Sampling, min_p: float, prompt: int, generated: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy((rng.permutation(500) / 250 - 1) * 4).float()[None]
    host = Sampling(**{name: getattr(host, name) for name in host.__struct_fields__} | {"min_p": min_p})
    history = rng.integers(0, 500, prompt + generated).tolist()
    wanted, _ = sample_on_the_host(logits, [Sequence(host, prompt, [], history)])
    counts = torch.zeros(1, 500, dtype=torch.int32)
    n = len(history)
    marks = torch.tensor([0] * prompt + [1] * generated, dtype=torch.int32)
    zeros = torch.zeros(n, dtype=torch.int32)
    ops.count_tokens(counts, zeros, torch.tensor(history, dtype=torch.int64), marks)
    line = {
        "temperature": host.temperature,
        "top_k": host.top_k,
        "top_p": host.top_p,
        "min_p": min_p,
        "presence": host.presence_penalty,
        "frequency": host.frequency_penalty,
        "repetition": host.repetition_penalty,
        "seed": host.seed,
        "position": n,
        "free_from": prompt + host.min_tokens,
        "banned": host.banned_first,
        "slot": 0,
    }
    assert ops.sample(logits, sampling_lines([line]), counts).tolist() == wanted
    assert int((counts >> 1).sum()) == generated + 1


def test_items_are_of_one_length_and_no_more_than_have_programs() -> None:
    plan = paged_decode.plan_decode(torch.tensor([32_768, *[512] * 63], dtype=torch.int32), 8, programs=792)
    *ends, each = plan.ends.tolist()
    assert each == 6  # 508 units, 8 KV heads, 792 programs
    assert ends[:3] == [0, 43, 44], "the long one is walked by 43 programs a head, a short one by one"
    assert ends[-1] == 43 + 63 <= plan.most == 64 + 99


@given(
    st.lists(st.integers(0, 100_000), min_size=1, max_size=40),
    st.integers(1, 16),
    st.integers(1, 900),
    st.sampled_from([None, 1, 700]),
)
def test_a_plan_holds_every_item(
    lengths: list[int], kv_heads: int, programs: int, window: int | None
) -> None:
    known = torch.tensor(lengths, dtype=torch.int32)
    plan = paged_decode.plan_decode(known, kv_heads, window=window, programs=programs)
    *ends, each = plan.ends.tolist()
    seen = [-(-n // UNIT) - (max(n - window, 0) // UNIT if window else 0) for n in lengths]
    assert [b - a for a, b in pairwise(ends)] == [max(1, -(-units // each)) for units in seen]
    assert each >= LEAST_UNITS
    assert ends[-1] <= plan.most


def test_the_dispatch_takes_references_on_the_cpu_and_leaves_triton_alone() -> None:
    """A CPU worker must start without Triton, installed or not."""
    code = (
        "import sys, torch; from muxd.kernels import ops; ops.silu_gate(torch.zeros(1, 4)); "
        "assert not any(name.split('.')[0] == 'triton' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        (paged_decode, ["plan_decode", "decode_attention"]),
        (paged_prefill, ["prefill_attention"]),
        (rope_write, ["rope_write"]),
        (norm, ["rms_norm"]),
        (gated, ["silu_gate", "gelu_tanh_gate", "clamped_gate"]),
        (grouped, ["grouped_linear"]),
        (sampling, ["sample", "count_tokens"]),
        (row_table, ["learn_rows", "grow_rows", "take_rows"]),
        (feed, ["feed"]),
        (paged_delta, ["delta_decode", "delta_prefill"]),
    ],
)
def test_a_kernel_takes_what_its_reference_takes(reference: ModuleType, names: list[str]) -> None:
    pytest.importorskip("triton")
    kernel = import_module(f"{reference.__name__}_kernel")
    for name in names:
        wanted, found = (list(inspect.signature(getattr(m, name)).parameters) for m in (reference, kernel))
        assert found[: len(wanted)] == wanted
