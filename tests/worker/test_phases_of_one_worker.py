"""A worker with batches of both phases under way: what they do not share, and what moves only at rest.

Over tensors of the CPU, by the kernels' references; with `-m gpu` over those of a GPU.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.direct_runner import GREEDY, DirectRunner, int32
from support.tiny_models import llama, qwen3_5, words

from muxd.messages import Chunk, Prefill, Sampling
from muxd.worker import cuda_sampling, cuda_step
from muxd.worker.cuda_flight import CudaFlight
from muxd.worker.cuda_sampling import CudaSampler
from muxd.worker.cuda_state import RowLists
from muxd.worker.runner import Batch
from muxd.worker.sequence import Sequence, Span

DRAWN = Sampling(temperature=0.8, top_p=0.9, seed=3)
HELD = Sampling(temperature=0.0, repetition_penalty=1.3)
TOLD = Sampling(temperature=0.0, logprobs=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_graphs: None) -> Path:
    folder = tmp_path_factory.mktemp("model")
    llama(folder)
    return folder


def paged(folder: Path, device: str = "cpu", **options: Any) -> DirectRunner:
    return DirectRunner(folder, block_bytes=4096, device=device, paged=True, capture=False, **options)


def step_of(direct: DirectRunner) -> cuda_step.CudaStep:
    step = direct.runner._step
    assert isinstance(step, cuda_step.CudaStep)
    return step


def begin_prompt(
    direct: DirectRunner, seq: int, tokens: list[int], sampling: Sampling, parts: int = 0
) -> Batch:
    """Its whole prompt, as a batch that is left under way."""
    rows = direct._grow(seq, len(tokens))
    direct._lengths[seq] = len(tokens)
    chunk = Chunk(seq, 0, int32(tokens), int32(rows), True, sampling, len(tokens), first=True)
    command = Prefill(next(direct._batch), 100, direct._new(rows), [chunk], [], parts)
    return direct.runner.begin(command)


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, HELD, TOLD])
def test_a_prompt_between_two_steps_of_others_takes_nothing_from_them(
    folder: Path, device: str, sampling: Sampling
) -> None:
    """The second step is fed by the first one's tokens, which nobody has read; the prompt is told of last."""
    direct, alone = paged(folder, device), DirectRunner(folder, block_bytes=4096, capture=False)
    for one in (direct, alone):
        one.prefill([(0, 0, words(7, seed=1), True), (1, 0, words(12, seed=2), True)], sampling)
    found = []
    for number in range(4):
        first = direct.begin([0, 1], parts=0b11)
        prompt = begin_prompt(direct, 10 + number, words(9, seed=number), sampling, parts=0b1100)
        second = direct.begin([0, 1], parts=0b11)
        found += [first.finish().tokens, second.finish().tokens, prompt.finish().tokens]
    expected = []
    for number in range(4):
        steps = [alone.decode([0, 1]) for _ in range(2)]
        expected += [*steps, alone.prefill([(10 + number, 0, words(9, seed=number), True)], sampling).tokens]
    assert found == expected


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN, HELD, TOLD])
def test_a_prefill_that_ends_many_prompts_samples_some_at_once(
    folder: Path, device: str, sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [(seq, 0, words(3 + seq, seed=seq), True) for seq in range(7)]
    whole = paged(folder, device).prefill(chunks, sampling)
    monkeypatch.setattr(cuda_sampling, "SAMPLED", 3)
    parts = paged(folder, device).prefill(chunks, sampling)
    assert parts.tokens == whole.tokens
    assert (parts.logprobs or {}).keys() == (whole.logprobs or {}).keys()
    for index, told in (whole.logprobs or {}).items():
        assert parts.logprobs is not None
        assert parts.logprobs[index].logprob == pytest.approx(told.logprob, abs=1e-5)
        assert [token for token, _ in parts.logprobs[index].top] == [token for token, _ in told.top]


def test_row_lists_move_only_while_nothing_runs() -> None:
    asked: list[int] = []
    lists = RowLists(4, torch.device("cpu"), 2, rest=lambda: asked.append(len(lists.rows)))
    sequences = [Sequence(GREEDY, 1, rows=[n, n + 1]) for n in range(5)]
    lists.place(sequences[:2])
    assert not asked
    lists.place(sequences)
    assert asked == [2, 4, 4, 8], "before and behind each move"
    assert [lists.rows[one.line, :2].tolist() for one in sequences] == [[n, n + 1] for n in range(5)]


def test_counts_of_tokens_move_only_while_nothing_runs() -> None:
    asked: list[int] = []
    sampler = CudaSampler(50, torch.device("cpu"), rest=lambda: asked.append(len(sampler.counts)))
    for n in range(17):
        assert bool(asked) is False
        sequence = Sequence(HELD, 2, history=[n, n + 1])
        sampler.note([Span(sequence, 0, 2)])
    assert asked == [16, 32]
    assert np.count_nonzero(sampler.counts[sequence.slot].numpy()) == 2


def test_a_worker_has_row_lists_for_as_many_as_it_runs(folder: Path) -> None:
    direct = DirectRunner(folder, paged=True, max_running=3)
    assert len(step_of(direct)._state.lists.rows) == 3


def test_steps_come_between_the_layers_of_a_prompt_and_not_into_one_that_is_a_graph(
    folder: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither while it is recorded nor when it runs: before that, once."""
    direct, order = paged(folder, device), list[str]()
    step = step_of(direct)
    direct.runner.weave(lambda: order.append("between"))
    assert step._prompts is not None
    record, run = step._prompts.record, step._prompts.run

    def recorded(*given: int) -> None:
        order.append("record")
        record(*given)

    def ran(*given: Any) -> torch.Tensor:
        order.append("run")
        return run(*given)

    monkeypatch.setattr(step._prompts, "record", recorded)
    monkeypatch.setattr(step._prompts, "run", ran)
    first = direct.prefill([(0, 0, words(9), True)]).tokens
    assert order == ["between", "record", "run"]
    assert direct.prefill([(1, 0, words(9), True)]).tokens == first
    assert order[3:] == ["between", "run"]
    order.clear()
    asked = Sampling(temperature=0.0, prompt_logprobs=1)
    assert direct.prefill([(2, 0, words(9), True)], asked).tokens == first
    assert order == ["between"] * direct.spec.layers
    direct.decode([0, 1, 2])
    assert len(order) == direct.spec.layers, "a step has no parts"


def test_steps_come_behind_layers_that_keep_a_state_as_behind_others(tmp_path: Path, device: str) -> None:
    qwen3_5(tmp_path)
    direct, calls = paged(tmp_path, device), list[None]()
    direct.runner.weave(lambda: calls.append(None))
    direct.prefill([(0, 0, words(9), True)])
    assert len(calls) == direct.spec.layers


def test_a_state_is_copied_before_its_prompt_counts_as_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that the daemon sends when it hears of that changes it, on another stream."""
    qwen3_5(tmp_path)
    direct, order = paged(tmp_path), list[str]()
    step = step_of(direct)
    copy = step._state.copy

    def flown(*given: Any) -> CudaFlight:
        order.append("event")
        return CudaFlight(*given)

    def copied(rows: list[int], into: list[int]) -> None:
        order.append("copy")
        copy(rows, into)

    monkeypatch.setattr(cuda_step, "CudaFlight", flown)
    monkeypatch.setattr(step._state, "copy", copied)
    size = direct.tokens
    own, state, kept = ([direct._free.pop() for _ in range(n)] for n in (3, *[direct._state_rows] * 2))
    tokens = words(2 * size)
    for mark in (2 * size, size):
        chunk = Chunk(
            mark, 0, int32(tokens), int32(own), True, GREEDY, len(tokens), first=True,
            state=int32(state), copy=int32(kept), mark=mark,
        )  # fmt: skip
        direct.runner.prefill(Prefill(mark, 100, direct._new([*own, *state, *kept]), [chunk], []))
    assert order == ["copy", "event", "copy", "event", "event"], "at its end, and on its way"


def test_graphs_of_both_phases_are_recorded_anew_when_the_row_lists_have_moved(
    folder: Path, device: str
) -> None:
    """A prompt more than is run at once, while steps are under way."""
    direct, alone = paged(folder, device, max_running=2), DirectRunner(folder, block_bytes=4096)
    step = step_of(direct)
    for one in (direct, alone):
        one.prefill([(0, 0, words(7, seed=1), True), (1, 0, words(12, seed=2), True)])
    assert step._graphs is not None
    assert step._prompts is not None
    expected = [alone.decode([0, 1])]
    assert [direct.decode([0, 1])] == expected
    assert step._graphs.has(0, 0, 2)
    assert step._prompts.has(0, 0, 32)
    running = direct.begin([0, 1])
    prompt = begin_prompt(direct, 2, words(9, seed=3), GREEDY)
    assert len(step._state.lists.rows) == 4
    assert not step._graphs.has(0, 0, 2)
    assert not step._prompts.has(0, 0, 32)
    assert step._prompts.has(0, 0, 16)
    assert running.finish().tokens == alone.decode([0, 1])
    assert prompt.finish().tokens == alone.prefill([(2, 0, words(9, seed=3), True)]).tokens
    assert [direct.decode([0, 1, 2]) for _ in range(3)] == [alone.decode([0, 1, 2]) for _ in range(3)]


@pytest.mark.parametrize("sampling", [DRAWN, HELD, Sampling(temperature=0.9, seed=5)])
def test_a_step_of_many_samples_some_at_once(folder: Path, device: str, sampling: Sampling) -> None:
    """As with a room that does not hold all."""
    found = []
    for lines in (0, 3):
        direct = paged(folder, device)
        step_of(direct)._sampler._room = torch.empty((lines, direct.spec.vocab_size), device=device)
        direct.prefill([(seq, 0, words(3 + seq, seed=seq), True) for seq in range(7)], sampling)
        found.append([direct.decode(list(range(7))) for _ in range(5)])
    assert found[0] == found[1]
