"""The sampler against plain reference code, its filters by property, its randomness by distribution.

MUXD_FUZZ=100000 says how many damaged batches are tried.
"""

import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support import damaged
from support.examples import examples

from muxd.messages import NO_TOKEN, Sampling
from muxd.worker.cuda_sampling import CudaSampler, SamplingMode, columns, mode_of
from muxd.worker.cuda_upload import upload
from muxd.worker.draw import RUN, draw, largest
from muxd.worker.sampler import penalise, sample, uniform
from muxd.worker.sequence import Sequence, Span

VOCAB = 700  # beyond a first shortlist
DAMAGED = int(os.environ.get("MUXD_FUZZ", "300"))


def sequence(sampling: Sampling, history: list[int] | None = None, prompt_tokens: int = 0) -> Sequence:
    return Sequence(sampling, prompt_tokens, [], history or [])


def logits_of(seed: int, spread: float = 3.0, vocab: int = VOCAB) -> torch.Tensor:
    """All different, so that every order is the only one."""
    order = np.random.default_rng(seed).permutation(vocab)
    return torch.from_numpy((order / vocab * 2 - 1) * spread).float()


def reference(logits: torch.Tensor, sampling: Sampling, u: float) -> int:
    """Temperature, min_p, top_k, top_p, then invert: in plain Python, over the whole vocabulary."""
    order = sorted(range(len(logits)), key=lambda i: -float(logits[i]))
    weights = [math.exp((float(logits[i]) - float(logits[order[0]])) / sampling.temperature) for i in order]
    kept = [w for w in weights if w >= sampling.min_p]
    kept = kept[: sampling.top_k] if sampling.top_k else kept
    total, nucleus, before = sum(kept), [], 0.0
    for weight in kept:
        if sampling.top_p < 1 and before >= sampling.top_p * total:
            break
        nucleus.append(weight)
        before += weight
    mark, reached = u * sum(nucleus), 0.0
    for i, weight in zip(order, nucleus, strict=False):
        reached += weight
        if mark < reached:
            return i
    return order[len(nucleus) - 1]


FILTERS = st.builds(
    Sampling,
    temperature=st.floats(0.05, 3),
    top_p=st.floats(0.01, 1) | st.just(1.0),
    top_k=st.integers(0, 40) | st.just(VOCAB + 5),
    min_p=st.floats(0, 1) | st.just(0.0),
    seed=st.integers(0, 2**63 - 1),
).filter(lambda s: s.top_k > 0 or s.top_p < 1 or s.min_p > 0)


@settings(max_examples=examples(150))
@given(FILTERS, st.integers(0, 50), st.integers(0, 300))
def test_filters_pick_what_plain_python_picks(sampling: Sampling, seed: int, position: int) -> None:
    logits = logits_of(seed)
    u = uniform(sampling.seed, position)
    tokens, _ = sample(logits[None], [sequence(sampling, [0] * position, position)])
    near = {reference(logits, sampling, x) for x in (u, max(0.0, u - 1e-5), min(1 - 1e-9, u + 1e-5))}
    assert tokens[0] in near


LARGE = 2 * RUN * 128 + 77  # beyond the first shortlist it is looked at in runs, the last of them not full


@settings(max_examples=examples(40))
@given(FILTERS, st.integers(0, 50), st.floats(0, 1, exclude_max=True), st.floats(0.5, 30))
def test_a_large_vocabulary_is_drawn_from_as_if_it_were_sorted(
    sampling: Sampling, seed: int, u: float, spread: float
) -> None:
    """By numpy, in float64; what is banned is drawn by no ``u``."""
    logits = logits_of(seed, spread, LARGE)
    logits[::3] = -math.inf
    scaled = (logits - logits.max()) / sampling.temperature
    order = np.argsort(-scaled.numpy(), kind="stable")
    weights = np.exp(scaled.double().numpy()[order])
    weights = weights[weights >= min(sampling.min_p, 1.0)]
    weights = weights[: sampling.top_k or None]
    if sampling.top_p < 1:
        weights = weights[(np.cumsum(weights) - weights) < sampling.top_p * weights.sum()]
    reached = np.cumsum(weights) / weights.sum()
    found = draw(scaled.clone(), sampling, u)
    at = int(np.flatnonzero(order == found)[0])
    assert math.isfinite(float(logits[found]))
    assert at < len(weights) + 1
    assert (reached[at - 1] if at else 0.0) - 1e-5 <= u <= reached[min(at, len(reached) - 1)] + 1e-5


@given(st.integers(0, 2**32 - 1), st.integers(1, 128), st.integers(1, 40))
def test_the_largest_are_found_by_opening_few_runs(seed: int, count: int, kinds: int) -> None:
    """Many are equal, so that only the values are the same as topk's."""
    weights = torch.from_numpy(np.random.default_rng(seed).integers(0, kinds, LARGE)).float()
    values, at = largest(weights, count)
    assert values.tolist() == weights.topk(count).values.tolist()
    assert weights[at[values > 0]].tolist() == values[values > 0].tolist()
    assert len(set(at.tolist())) == count


@pytest.mark.parametrize("u", [0.0, 0.5, 1 - 2**-53])
def test_nothing_of_no_weight_is_drawn(u: float) -> None:
    scaled = torch.full((LARGE,), -math.inf)
    scaled[[100, 9000]] = torch.tensor([0.0, -3.0])
    assert draw(scaled, Sampling(), u) in (100, 9000)


@settings(max_examples=examples(40))
@given(st.integers(0, 2**63 - 1), st.integers(0, 100), st.floats(0.1, 4))
def test_without_filters_the_whole_vocabulary_is_inverted_in_order(seed: int, at: int, heat: float) -> None:
    logits = logits_of(3)
    tokens, _ = sample(logits[None], [sequence(Sampling(temperature=heat, seed=seed), [1] * at, at)])
    cumulative = torch.softmax(logits.double() / heat, -1).cumsum(0)
    u = uniform(seed, at)
    low = float(cumulative[tokens[0] - 1]) if tokens[0] else 0.0
    assert low - 1e-6 <= u <= float(cumulative[tokens[0]]) + 1e-6


def test_what_is_drawn_leaves_the_logits_as_they_are() -> None:
    logits = torch.stack([logits_of(i) for i in range(2)])
    before = logits.clone()
    all_of_it = Sampling(
        temperature=0.7, top_p=0.9, seed=1, repetition_penalty=1.3, presence_penalty=1.0, min_tokens=9,
        banned_first=(1,), logprobs=2,
    )  # fmt: skip
    sample(logits, [sequence(all_of_it, [3, 4], 1)] * 2)
    assert torch.equal(logits, before)


def test_greedy_is_the_argmax_also_among_sampled_rows() -> None:
    logits = torch.stack([logits_of(i) for i in range(4)])
    greedy, warm = Sampling(temperature=0.0), Sampling(temperature=2.0, seed=1)
    tokens, logprobs = sample(logits, [sequence(s) for s in (greedy, warm, greedy, greedy)])
    best = logits.argmax(-1).tolist()
    assert [tokens[0], tokens[2], tokens[3]] == [best[0], best[2], best[3]]
    assert logprobs is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equal_logits_give_the_first_token_as_argmax_does(dtype: torch.dtype) -> None:
    logits = torch.zeros(3, 5000, dtype=dtype)
    logits[1, [17, 4000]] = 2.0
    tokens, _ = sample(logits, [sequence(Sampling(temperature=0.0))] * 3)
    assert tokens == [0, 17, 0]


def test_tiny_temperature_is_greedy_and_finite() -> None:
    logits = logits_of(5, spread=80)
    tokens, _ = sample(logits[None], [sequence(Sampling(temperature=1e-6, seed=9))])
    assert tokens == [int(logits.argmax())]


def test_frequencies_follow_the_distribution() -> None:
    logits, count = torch.tensor([2.0, 1.0, 0.0, -1.0]), 4000
    sampling = Sampling(temperature=1.3, seed=42)
    found = [sample(logits[None], [sequence(sampling, [0] * i, i)])[0][0] for i in range(count)]
    expected = torch.softmax(logits / 1.3, -1) * count
    chi2 = float(((torch.bincount(torch.tensor(found), minlength=4) - expected) ** 2 / expected).sum())
    assert chi2 < 16.3  # 3 degrees of freedom, p = 0.001


@given(st.integers(0, 2**64 - 1), st.integers(0, 10**6))
def test_uniform_depends_on_seed_and_position_only(seed: int, position: int) -> None:
    assert uniform(seed, position) == uniform(seed, position)
    assert 0 <= uniform(seed, position) < 1
    assert uniform(seed, position) != uniform(seed, position + 1)
    assert uniform(seed, position) != uniform(seed ^ 1, position)


@settings(max_examples=examples(100))
@given(
    st.lists(st.integers(0, 19), min_size=1, max_size=30),
    st.integers(0, 30),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0.5, 2),
)
def test_penalties_against_plain_code(
    history: list[int], prompt: int, presence: float, frequency: float, repetition: float
) -> None:
    prompt = min(prompt, len(history))
    sampling = Sampling(presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition)
    logits = logits_of(1, vocab=20)
    wanted = logits.tolist()
    for token in set(history):
        wanted[token] = wanted[token] / repetition if wanted[token] > 0 else wanted[token] * repetition
    for token in set(history[prompt:]):
        wanted[token] -= presence + frequency * history[prompt:].count(token)
    penalise(logits, sequence(sampling, history, prompt))
    torch.testing.assert_close(logits, torch.tensor(wanted), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_banned_tokens_wait_for_min_tokens(temperature: float) -> None:
    logits = torch.full((1, 10), -30.0)
    logits[0, 4], logits[0, 7] = 30.0, 10.0
    sampling = Sampling(temperature=temperature, min_tokens=2, banned_first=(4,))
    held = sequence(sampling, [1, 2, 3], prompt_tokens=3)
    found = []
    for _ in range(4):
        tokens, _ = sample(logits, [held])
        held.history += tokens
        found += tokens
    assert found == [7, 7, 4, 4]


def test_logprobs_are_of_the_raw_distribution() -> None:
    logits = torch.stack([logits_of(1), logits_of(2)])
    sampling = Sampling(temperature=0.1, repetition_penalty=1.5, logprobs=0)
    tokens, found = sample(logits, [sequence(sampling, [3, 4], 1), sequence(Sampling(logprobs=2, seed=3))])
    assert found is not None
    wanted = torch.log_softmax(logits, -1)
    assert found[0].top == []
    assert found[0].logprob == pytest.approx(float(wanted[0, tokens[0]]), abs=1e-5)
    best = wanted[1].topk(2).indices.tolist()
    assert [token for token, _ in found[1].top] == best
    assert [p for _, p in found[1].top] == pytest.approx([float(wanted[1, t]) for t in best], abs=1e-5)


def test_top_p_is_a_fraction_of_what_min_p_left_also_beyond_the_shortlist() -> None:
    """Weights exp(-i / 1000): min_p keeps 917 tokens, more than the shortlist, and top_p cuts inside it."""
    scaled = -torch.arange(3000, dtype=torch.float32) / 1000
    sampling = Sampling(top_p=0.3, min_p=0.4)
    weights = scaled.double().exp()
    left = weights[weights >= 0.4]
    kept = left[left.cumsum(0) - left < 0.3 * left.sum()]
    expected = int(torch.searchsorted(kept.cumsum(0), 0.5 * kept.sum(), right=True))
    assert draw(scaled, sampling, 0.5) == expected


@st.composite
def damaged_batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[Sequence]]:
    count = draw(st.integers(1, 4))
    sequences = []
    for _ in range(count):
        history = draw(st.lists(st.integers(0, damaged.VOCAB - 1), min_size=1, max_size=6))
        sampling = draw(st.builds(Sampling, **damaged.SAMPLINGS))
        sequences.append(sequence(sampling, history, draw(st.integers(1, len(history)))))
    return torch.stack([draw(damaged.rows()) for _ in range(count)]), sequences


@settings(max_examples=DAMAGED)
@given(damaged_batches())
def test_any_request_on_any_logits_gets_a_token_or_none_and_harms_no_other(
    batch: tuple[torch.Tensor, list[Sequence]],
) -> None:
    logits, sequences = batch
    tokens, logprobs = sample(logits, sequences)
    assert tokens == [sample(logits[i : i + 1], [one])[0][0] for i, one in enumerate(sequences)]
    for row, one, token in zip(logits, sequences, tokens, strict=True):
        assert token in range(damaged.VOCAB) or token == NO_TOKEN
        assert damaged.sound(row) or token == NO_TOKEN
        assert (
            token == NO_TOKEN
            or len(one.generated) >= one.sampling.min_tokens
            or (token not in one.sampling.banned_first)
        )
    assert all(tokens[i] != NO_TOKEN for i in logprobs or {})


@settings(max_examples=DAMAGED)
@given(damaged_batches())
def test_the_device_finds_the_same_rows_without_a_token(
    batch: tuple[torch.Tensor, list[Sequence]],
) -> None:
    """The references of the kernels, by way of the columns that a worker on a GPU uploads."""
    logits, sequences = batch
    known = [len(one.history) for one in sequences]
    device = torch.device("cpu")
    picker = CudaSampler(damaged.VOCAB, device)
    for one in sequences:
        picker.note([Span(one, 0, len(one.history))])
    told = columns(sequences, known, len(sequences))
    picked = picker.pick(
        max(mode_of(sequences, known), SamplingMode.DRAWN), logits, upload(device, *told)
    ).tolist()
    wanted, _ = sample(logits, sequences)
    assert [token == NO_TOKEN for token in picked] == [token == NO_TOKEN for token in wanted]
    assert all(token in range(damaged.VOCAB) or token == NO_TOKEN for token in picked)
    asked = [i for i, one in enumerate(sequences) if one.sampling.logprobs >= 0]
    if asked:
        found = picker.logprobs(logits, torch.tensor(picked), sequences)()
        assert sorted(found) == asked


def test_bans_that_leave_nothing_end_the_request_and_nobody_elses() -> None:
    logits = torch.randn(2, 10)
    everything = Sampling(temperature=0.0, min_tokens=5, banned_first=tuple(range(10)))
    tokens, _ = sample(logits, [sequence(everything, [1], 1), sequence(Sampling(temperature=0.0), [1], 1)])
    assert tokens == [NO_TOKEN, int(logits[1].argmax())]


def test_filters_leave_the_best_token_whatever_they_say() -> None:
    logits = logits_of(4)
    drawn = Sampling(seed=3)
    for filters in ({"min_p": 7.0}, {"top_p": 0.0}, {"top_p": -1.0, "top_k": 9}, {"top_p": 5e-324}):
        tokens, _ = sample(logits[None], [sequence(structs.replace(drawn, **filters))])
        assert tokens == [int(logits.argmax())]
