"""Prefills that are recorded for some numbers of tokens: which there are, what padding is, the same
tokens."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.direct_runner import DirectRunner
from support.tiny_models import Make, llama, mixtral, words

from muxd.messages import Sampling
from muxd.worker.cuda_graphs import bucket
from muxd.worker.cuda_prompts import PROMPT_LINES, PROMPTS, prompt_arrays, prompt_padding
from muxd.worker.cuda_step import CudaStep
from muxd.worker.sequence import Sequence, Span

GREEDY = Sampling(temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder, max_position_embeddings=2048)
    return folder


@given(st.integers(1, 2000))
def test_half_of_a_batch_at_most_is_padding(count: int) -> None:
    size = bucket(count, PROMPTS)
    assert (size is None) == (count > PROMPTS[-1])
    assert size is None or count <= size <= max(2 * count, PROMPTS[0])


CHUNKS = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 40)), min_size=1, max_size=PROMPT_LINES)


@given(CHUNKS, st.data())
def test_padding_is_nobody(chunks: list[tuple[int, int]], data: st.DataObject) -> None:
    spans = [
        Span(Sequence(GREEDY, 0, history=list(range(100, 200)), line=7 + i), start, start + count)
        for i, (start, count) in enumerate(chunks)
    ]
    ends = sorted(data.draw(st.sets(st.integers(0, len(spans) - 1))))
    size = bucket(sum(count for _, count in chunks), PROMPTS)
    assert size is not None
    plain, padded = prompt_arrays(spans, ends), prompt_arrays(spans, ends, size)
    empty = prompt_padding(0, size)
    assert [array.shape for array in padded] == [array.shape for array in empty]
    for short, long in zip(plain, padded, strict=True):
        assert long[: len(short)].tolist() == short.tolist()
    positions, starts = padded[2], padded[4]
    assert (positions[len(plain[2]) :] == -1).all(), "not written"
    assert (starts[len(plain[4]) :] == len(plain[0])).all(), "spans without tokens"
    assert (empty[2] == -1).all()
    assert not empty[4].any()


def prefilled(direct: DirectRunner, batches: list[list[tuple[int, int, list[int], bool]]]) -> list[Any]:
    return [direct.prefill(batch).tokens for batch in batches]


def test_a_recorded_prefill_has_the_tokens_of_any_other(folder: Path, device: str) -> None:
    """Prompts side by side, chunks of a prompt, more sequences than a graph has lines, more tokens than the
    largest."""
    texts = [words(n, seed=n) for n in (3, 70, 41, 1500, 200)]
    batches = [
        [(1, 0, texts[0], True), (2, 0, texts[1][:50], False), (3, 0, texts[2], True)],
        [(2, 50, texts[1][50:], True), (5, 0, texts[4][:90], False)],
        [(5, 90, texts[4][90:], True)],
        [(4, 0, texts[3], True)],
        [(10 + i, 0, words(5 + i, seed=i), True) for i in range(PROMPT_LINES + 1)],
    ]
    direct, sizes = DirectRunner(folder, device=device, paged=True), []
    step = direct.runner._step
    assert isinstance(step, CudaStep)
    assert step._prompts is not None
    run = step._prompts.run

    def seen(mask: int, mode: int, size: int, arrays: Any) -> Any:
        sizes.append(size)
        return run(mask, mode, size, arrays)

    step._prompts.run = seen  # type: ignore[method-assign]
    assert prefilled(direct, batches) == prefilled(DirectRunner(folder), batches)
    assert sizes == [96, 128, 128]
    ids = [1, 2, 3, 4, 5, *range(10, 11 + PROMPT_LINES)]
    host = DirectRunner(folder)
    prefilled(host, batches)
    assert [direct.decode(ids) for _ in range(3)] == [host.decode(ids) for _ in range(3)]


def test_prompts_that_are_looked_at_are_not_recorded(folder: Path, device: str) -> None:
    asked = Sampling(temperature=0.0, prompt_logprobs=1)
    found = []
    for direct in (DirectRunner(folder, device=device, paged=True), DirectRunner(folder)):
        done = direct.prefill([(1, 0, words(20), True)], asked)
        found.append((done.tokens, [len(one.scores) for one in done.prompt_scores]))
        if isinstance(step := direct.runner._step, CudaStep):
            assert step._prompts is not None
            assert not any(step._prompts.has(0, 0, size) for size in PROMPTS)
    assert found[0] == found[1]


@pytest.mark.parametrize("make", [llama, mixtral])
def test_graphs_are_there_when_a_worker_is_ready(tmp_path: Path, device: str, make: Make) -> None:
    make(tmp_path)
    direct = DirectRunner(tmp_path, device=device, paged=True, max_running=1)
    direct.runner.warm_up()
    step = direct.runner._step
    assert isinstance(step, CudaStep)
    assert step._prompts is not None
    kept = [size for size in PROMPTS if step._prompts.has(0, 0, size)]
    assert kept == [PROMPTS[-1]], "others when they are wanted, in its memory"
    direct.prefill([(1, 0, words(60), True)])
    assert [size for size in PROMPTS if step._prompts.has(0, 0, size)] == [64, PROMPTS[-1]]
