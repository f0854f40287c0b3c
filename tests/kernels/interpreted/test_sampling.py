"""Sampling: the exact number, the exact token, whatever the filters keep."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import damaged
from support.kernel_cases import check_sample, sampling_lines

pytest.importorskip("triton")

from muxd.kernels import sampling, sampling_kernel
from muxd.messages import NO_TOKEN

LINES = st.fixed_dictionaries(
    {
        "temperature": st.just(0.0) | st.floats(0.05, 3),
        "top_k": st.just(0) | st.integers(1, 60) | st.integers(61, 4000),
        "top_p": st.just(1.0) | st.floats(0.01, 1),
        "min_p": st.just(0.0) | st.floats(0.0001, 1),
        "presence": st.just(0.0) | st.floats(-2, 2),
        "frequency": st.just(0.0) | st.floats(-2, 2),
        "repetition": st.just(1.0) | st.floats(0.5, 2),
        "seed": st.integers(0, 2**64 - 1),
        "position": st.integers(0, 300),
        "free_from": st.integers(0, 300),
        "banned": st.lists(st.integers(0, 699), max_size=3),
    }
)


def distinct(seed: int, batch: int, vocab: int) -> torch.Tensor:
    """Logits that differ from one another, so that every order is the only one."""
    generator = torch.Generator().manual_seed(seed)
    lines = [torch.randperm(vocab, generator=generator) for _ in range(batch)]
    return (torch.stack(lines) / vocab * 2 - 1) * 4


@settings(max_examples=60)
@given(
    st.lists(LINES, min_size=1, max_size=4),
    st.sampled_from([700, 2048, 4500]),
    st.sampled_from([8, 128, 1024]),
    st.integers(0, 99),
)
def test_any_line(params: list[dict[str, Any]], vocab: int, shortlist: int, seed: int) -> None:
    slotted = [{**line, "slot": i if i % 2 else -1} for i, line in enumerate(params)]
    check_sample(sampling_kernel, distinct(seed, len(params), vocab), slotted, shortlist)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_greedy_is_the_first_best(dtype: torch.dtype) -> None:
    logits = torch.randn(5, 5000, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[1, [70, 4000]] = 60.0
    logits[2] = float("-inf")
    logits[3] = 0.0
    lines = sampling_lines([{}] * 5)
    counts = torch.zeros(1, 5000, dtype=torch.int32)
    for greedy in (False, True):
        found = sampling_kernel.sample(logits, lines, counts, greedy=greedy)
        wanted = logits.float().argmax(-1).tolist()
        wanted[2] = NO_TOKEN
        assert found.tolist() == wanted


def test_room_for_fewer_lines_is_left_alone() -> None:
    logits, room = distinct(7, 3, 900), torch.full((2, 900), float("nan"))
    lines = sampling_lines([{"temperature": 0.7, "top_p": 0.9, "seed": i, "position": i} for i in range(3)])
    counts = torch.zeros(1, 900, dtype=torch.int32)
    found = sampling_kernel.sample(logits, lines, counts, room=room)
    assert torch.equal(found, sampling.sample(logits, lines, counts))
    assert room.isnan().all()


def test_ties_in_a_long_list_rank_by_token() -> None:
    """bfloat16 logits tie by the hundred; beyond the shortlist the kernel decides their order itself."""
    logits = (torch.randn(3, 3000, generator=torch.Generator().manual_seed(3))).bfloat16()
    common = {"temperature": 1.5, "position": 4}
    params = [
        {**common, "top_p": 0.97, "seed": 1},
        {**common, "top_k": 500, "seed": 2},
        {**common, "top_k": 700, "top_p": 0.9, "min_p": 0.02, "seed": 3},
    ]
    for seed in range(5):
        check_sample(sampling_kernel, logits, [{**p, "seed": p["seed"] + 10 * seed} for p in params], 16)


def test_extreme_temperatures() -> None:
    logits = distinct(1, 3, 900)
    params = [{"temperature": t, "seed": 5, "top_p": p} for t, p in ((1e-6, 1.0), (1e-6, 0.5), (1e4, 0.99))]
    check_sample(sampling_kernel, logits, params, 8)


def test_the_promise_of_no_filters_spares_the_shortlist() -> None:
    logits, counts = distinct(2, 3, 5000), torch.zeros(1, 5000, dtype=torch.int32)
    lines = sampling_lines([{"temperature": 1.0, "seed": s} for s in range(3)])
    found = sampling_kernel.sample(logits, lines, counts, filtered=False)
    assert found.tolist() == sampling.sample(logits, lines, counts).tolist()


DAMAGED = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.0, 0.7, 1.0, 3e38, float("nan"), -1.0]),
        "top_k": st.sampled_from([0, 1, 3, 700]),
        "top_p": st.sampled_from([1.0, 0.9, 0.0, -1.0, 5e-324, float("nan")]),
        "min_p": st.sampled_from([0.0, 0.5, 1.0, 7.0]),
        "presence": st.sampled_from([0.0, 2.0, float("nan"), float("inf")]),
        "repetition": st.sampled_from([1.0, 0.01, 100.0, 0.0, float("inf")]),
        "seed": st.integers(0, 2**64 - 1),
        "free_from": st.sampled_from([0, 9]),
        "banned": st.sampled_from([(), (3,), tuple(range(damaged.VOCAB)), (damaged.VOCAB + 5,)]),
        "slot": st.sampled_from([-1, 0, 1]),
    }
)


@settings(max_examples=120)
@given(st.lists(st.tuples(damaged.rows(), DAMAGED), min_size=1, max_size=3), st.sampled_from([8, 1024]))
def test_damaged_lines_are_marked_and_the_others_are_as_ever(
    drawn: list[tuple[torch.Tensor, dict[str, Any]]], shortlist: int
) -> None:
    """Without a look from the host: NO_TOKEN is what the kernel writes, and such a line counts nothing."""
    logits = torch.stack([row for row, _ in drawn])
    # Two lines never have one slot.
    lines = sampling_lines(
        [{**line, "slot": i if line["slot"] >= 0 else -1} for i, (_, line) in enumerate(drawn)]
    )
    counts = [torch.zeros(3, damaged.VOCAB, dtype=torch.int32) for _ in range(2)]
    found = sampling_kernel.sample(logits, lines, counts[0], shortlist=shortlist).tolist()
    wanted = sampling.sample(logits, lines, counts[1]).tolist()
    assert [token == NO_TOKEN for token in found] == [token == NO_TOKEN for token in wanted]
    for row, token, slot, own in zip(
        logits, found, lines.slot.tolist(), counts[0][lines.slot.long()], strict=True
    ):
        assert token == NO_TOKEN or token in range(damaged.VOCAB)
        assert damaged.sound(row) or token == NO_TOKEN
        if slot >= 0:
            assert own.tolist() == [3 * (token == i) for i in range(damaged.VOCAB)]
