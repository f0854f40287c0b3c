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


def ran(
    logits: torch.Tensor, params: list[dict[str, Any]], **options: Any
) -> tuple[list[int], list[list[int]]]:
    """The tokens, and each line's list."""
    lines, counts = sampling_lines(params), torch.zeros(1, logits.shape[1], dtype=torch.int32)
    tokens, calls = sampling_kernel.sample_calls(logits, lines, counts, **options)
    for call in calls:
        call.run()
    collect = calls[3]
    numbers, packed = collect.arguments[3][:, 1].tolist(), collect.arguments[5]
    ids = [(0x7FFFFFFF - (own[:n] & 0x7FFFFFFF)).tolist() for own, n in zip(packed, numbers, strict=True)]
    return tokens.tolist(), ids


def kept(line: torch.Tensor, asked: dict[str, Any]) -> list[int]:
    """Tokens that the filters leave, best first."""
    values, ids = torch.sort(
        (line.double() - line.max()) / asked["temperature"], descending=True, stable=True
    )
    weights = values.exp()[: asked.get("top_k") or None]
    weights = weights[weights >= asked.get("min_p", 0)]
    before = weights.cumsum(0) - weights
    found: list[int] = ids[: int((before < asked.get("top_p", 1.0) * weights.sum()).sum())].tolist()
    return found


@settings(max_examples=15)
@given(
    st.floats(0.1, 2),
    st.sampled_from(
        [{"top_p": 0.5}, {"top_p": 0.97}, {"top_k": 40}, {"min_p": 0.01}, {"top_k": 60, "top_p": 0.9}]
    ),
    st.integers(0, 99),
)
def test_the_list_holds_what_is_kept_and_little_more(
    temperature: float, asked: dict[str, Any], seed: int
) -> None:
    logits = torch.randn(1, 6000, generator=torch.Generator().manual_seed(seed)) * 3
    asked = {**asked, "temperature": temperature, "seed": seed}
    (_, (found,)), wanted = ran(logits, [asked]), kept(logits[0], {**asked})
    most = kept(
        logits[0], {name: value for name, value in asked.items() if name != "top_p" or len(asked) < 4}
    )
    # What lies deeper than the bins is not listed: it could be drawn once in 1e13 times.
    near = {token for token in wanted if logits[0].max() - logits[0, token] < 31 * temperature}
    assert near <= set(found)
    assert len(set(found)) == len(found)
    # A bin's weights differ by an eighth, and so may the mass of what lies behind the nucleus.
    assert len(found) <= 1.5 * len(most) + 12


def test_lists_of_cold_lines() -> None:
    """Also where top_k reaches deeper than any bin, to tokens that could only be drawn by a wonder."""
    logits = torch.randn(5, 5000, generator=torch.Generator().manual_seed(4)) * 5
    params: list[dict[str, Any]] = [
        {"temperature": 0.02, "top_k": 50, "seed": 1},
        {"temperature": 0.02, "top_k": 50, "top_p": 0.9, "seed": 2},
        {"temperature": 1.0, "top_k": 4000, "seed": 3},
        {"temperature": 0.8, "top_k": 4000, "top_p": 0.95, "min_p": 1e-6, "seed": 4},
        {"temperature": 1e-6, "top_p": 0.9, "seed": 5},
    ]
    assert all(ran(logits, params)[1]), "each has one"
    check_sample(sampling_kernel, logits, params)


@pytest.mark.parametrize(("shortlist", "listed"), [(4096, True), (1024, False)])
def test_lines_that_keep_thousands(shortlist: int, listed: bool) -> None:
    """Drawn from a list of what they may keep, or from the whole vocabulary where that would be too long."""
    logits = distinct(3, 1, 4000) / 8  # nearly flat: hundreds of tokens in the first bin
    params: list[dict[str, Any]] = [
        {"temperature": 1.0, "top_p": 0.9, "seed": 6},
        {"temperature": 1.0, "top_k": 3000, "top_p": 0.8, "seed": 7},
        {"temperature": 1.0, "min_p": 0.45, "seed": 8},
    ]
    for one in params:
        assert bool(ran(logits, [one], shortlist=shortlist)[1][0]) is listed
        check_sample(sampling_kernel, logits, [one], shortlist)


def test_both_zeros_are_one_logit() -> None:
    """0.0 and -0.0 are equal, and the lower id goes first."""
    logits = torch.full((1, 700), -50.0)
    logits[0, [40, 600]], logits[0, [9, 300]] = 0.0, -0.0
    for shortlist in (2, 1024):
        for seed in range(6):
            line = {"temperature": 1.0, "top_k": 3, "seed": seed}
            check_sample(sampling_kernel, logits, [line], shortlist)


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
