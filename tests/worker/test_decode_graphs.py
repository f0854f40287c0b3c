"""Decode steps recorded for some batch sizes: which there are, when they are made, the same results."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.direct_runner import DirectRunner
from support.tiny_models import llama, words

from muxd.device.green import KEPT
from muxd.worker import cuda_state, cuda_step, cuda_upload
from muxd.worker.cuda_graphs import BUCKETS, Again, KeptGraphs, StepGraphs, bucket, buckets_for
from muxd.worker.cuda_sampling import SamplingMode
from muxd.worker.cuda_step import CudaStep

padding = partial(cuda_step.padding, 6)


class Sharing(Again):
    """As graphs of a device do."""

    shares = True


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder)
    return folder


def paged(folder: Path, device: str = "cpu", **options: Any) -> DirectRunner:
    return DirectRunner(folder, device=device, paged=True, **options)


@given(st.integers(1, 400), st.sets(st.integers(1, 300), min_size=1))
def test_a_bucket_is_the_smallest_that_holds_the_batch(count: int, sizes: set[int]) -> None:
    found = bucket(count, tuple(sorted(sizes)))
    fitting = [size for size in sizes if size >= count]
    assert found == (min(fitting) if fitting else None)


@given(st.integers(1, 400))
def test_graphs_are_kept_for_the_batches_that_a_model_may_have(most: int) -> None:
    sizes = buckets_for(most)
    assert sizes == BUCKETS[: len(sizes)]
    assert bucket(most, sizes) == bucket(most)
    if most <= BUCKETS[-1]:
        assert [size for size in sizes if size >= most] == [sizes[-1]]


def test_a_model_of_few_sequences_records_few_graphs(folder: Path, device: str) -> None:
    direct = paged(folder, device, max_running=3)
    direct.runner.warm_up()
    graphs = direct.runner._step._graphs  # type: ignore[attr-defined]
    kept = [(mode, size) for mode in SamplingMode for size in BUCKETS if graphs.has(0, mode, size)]
    assert kept == [(SamplingMode.FILTERED, 4)], "none is wanted yet"
    prompts = [words(n, seed=5) for n in (3, 9, 6, 4, 5)]  # more than was said still get their tokens
    assert direct.generate(prompts, 3) == DirectRunner(folder).generate(prompts, 3)


@given(st.sampled_from(SamplingMode), st.integers(1, 200))
def test_padding_is_nobody(mode: SamplingMode, size: int) -> None:
    lines, tokens, positions, lengths, columns, ids, learnt, blocks, *told = padding(mode, size)
    assert all(len(array) == size for array in (lines, tokens, positions, lengths, columns, ids, *told))
    assert all((array == -1).all() for array in (positions, columns, learnt))
    assert len(learnt) == len(blocks) <= size
    assert not any(array.any() for array in (lines, tokens, lengths))
    if mode is not SamplingMode.GREEDY:
        assert not told[0].any()  # the argmax
        assert (told[-1] == -1).all()  # nobody's counts


def test_graphs_are_recorded_when_they_are_wanted_and_of_each_mask_the_largest_first() -> None:
    asked: list[tuple[int, int]] = []

    def step(mode: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        asked.append((mode, len(tensors[0])))
        return torch.stack(tensors[:4]).sum(0)[:, None].float()

    graphs = StepGraphs(step, padding, torch.device("cpu"), KeptGraphs(Sharing()), (1, 2, 8))
    assert [graphs.size(n) for n in (1, 2, 3, 8, 9)] == [1, 2, 8, 8, None]
    assert not graphs.has(0, 1, 2)
    graphs.record(0, 1, 1, 2)
    assert asked == [(1, 8), (1, 2), (1, 1)]
    assert graphs.has(0, 1, 2)
    assert not graphs.has(0, 0, 2)
    assert not graphs.has(3, 1, 2)
    arrays = padding(1, 2)
    arrays[1][:] = 7, 9
    assert graphs.run(0, 1, 2, arrays)[:, 0].tolist() == [6.0, 8.0]
    assert graphs.run(0, 1, 1, padding(1, 1))[:, 0].tolist() == [-1.0]
    assert asked[3:] == [(1, 2), (1, 1)]
    graphs.record(3, 0, 2)
    assert asked[5:] == [(0, 8), (0, 2)], "others find their memory in what the largest took"
    assert graphs.has(3, 0, 2)
    graphs.record(3, 1, 1)
    assert asked[7:] == [(1, 1)], "what it is asked for, and no more"
    assert not graphs.has(3, 1, 8)
    graphs.forget()
    assert not graphs.has(0, 1, 2)


def test_no_more_masks_keep_graphs_than_there_is_memory_for(folder: Path, device: str) -> None:
    """A worker that is sent to every set of parts: always the same tokens, and few sets of graphs."""
    direct = paged(folder, device)
    step = direct.runner._step
    assert isinstance(step, CudaStep)
    assert step._graphs is not None
    direct.prefill([(1, 0, words(9), True)])
    found, kept = [], []
    for mask in [*range(15), 3, 14, 0]:
        step._streams.mask = mask
        found += direct.decode([1])
        kept = [one for one in range(1, 15) if step._graphs.has(one, SamplingMode.GREEDY, 1)]
        assert len(kept) <= KEPT
        assert step._graphs.has(mask, SamplingMode.GREEDY, 1)
    assert kept == [3, 13, 14]
    step._streams.mask = 0
    alone = DirectRunner(folder)
    alone.prefill([(1, 0, words(9), True)])
    assert found == [alone.decode([1])[0] for _ in found]


def test_graphs_that_were_not_used_for_long_make_room_for_others() -> None:
    made: list[int] = []

    def step(mode: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        made.append(len(tensors[0]))
        return torch.zeros(len(tensors[0]), 1)

    graphs = StepGraphs(step, padding, torch.device("cpu"), KeptGraphs(Sharing(), 3), (1, 2, 4, 8))

    def kept() -> list[tuple[int, int]]:
        return [(mask, size) for mask in (0, 5) for size in (1, 2, 4, 8) if graphs.has(mask, 0, size)]

    graphs.record(0, 0, 1)
    graphs.record(0, 0, 2)
    assert kept() == [(0, 1), (0, 2), (0, 8)]
    graphs.run(0, 0, 8, padding(0, 8))
    graphs.record(0, 0, 4)
    assert kept() == [(0, 2), (0, 4), (0, 8)]
    graphs.record(5, 0, 1)
    assert kept() == [(0, 4), (5, 1), (5, 8)]
    graphs.record(5, 0, 2)
    graphs.record(5, 0, 4)
    assert kept() == [(5, 1), (5, 2), (5, 4)]
    made.clear()
    graphs.record(0, 0, 1)
    assert made == [8, 1], "its memory went with its last graph"
    assert kept() == [(0, 1), (0, 8), (5, 4)]


def test_graphs_of_steps_and_of_prefills_have_one_bound() -> None:
    """Whichever was not used for the longest time goes, whosever it is."""

    def step(mode: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.zeros(len(tensors[0]), 1)

    kept_graphs, cpu = KeptGraphs(Sharing(), 4), torch.device("cpu")
    steps = StepGraphs(step, padding, cpu, kept_graphs, (1, 2))
    prompts = StepGraphs(step, padding, cpu, kept_graphs, (16, 32), masks=1)

    def kept() -> list[list[tuple[int, int]]]:
        return [
            [(mask, size) for mask in (0, 5, 6) for size in sizes if graphs.has(mask, 0, size)]
            for graphs, sizes in ((prompts, (16, 32)), (steps, (1, 2)))
        ]

    prompts.record(0, 0, 16)
    steps.record(0, 0, 1)
    assert kept() == [[(0, 16), (0, 32)], [(0, 1), (0, 2)]]
    prompts.run(0, 0, 32, padding(0, 32))
    steps.record(5, 0, 2)
    assert kept() == [[(0, 32)], [(0, 1), (0, 2), (5, 2)]], "a prompt's goes for a step's"
    prompts.record(5, 0, 32)
    assert kept() == [[(0, 32), (5, 32)], [(0, 1), (5, 2)]], "and a step's for a prompt's"
    assert (prompts.crowded(6), steps.crowded(6)) == (5, None)
    steps.record(6, 0, 1)
    assert kept() == [[(5, 32)], [(5, 2), (6, 1), (6, 2)]]
    steps.forget()
    assert kept() == [[(5, 32)], []]


def test_graphs_and_single_launches_agree(folder: Path, device: str) -> None:
    prompts = [words(n, seed=9) for n in (3, 40, 17)]
    found = []
    for recorded in (True, False):
        direct = paged(folder, device)
        if not recorded:
            direct.runner._step._graphs = None  # type: ignore[attr-defined]
        direct.runner.warm_up()
        found.append(direct.generate(prompts, 25))
    assert found[0] == found[1]


@pytest.mark.parametrize("room", [16 << 10, 4])
def test_rows_that_a_step_brings_are_written_by_the_step(
    folder: Path, device: str, room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences that grow, and rows not seen before, go with its inputs: nothing is sent beside them, unless
    more rows are new than there is room for."""
    monkeypatch.setattr(cuda_state, "_NEW_BYTES", room)
    sent, upload = [], cuda_upload.upload

    def counted(*arguments: Any) -> list[torch.Tensor]:
        sent.append(arguments)
        return upload(*arguments)

    found = []
    for direct in (paged(folder, device), DirectRunner(folder)):
        direct.prefill([(1, 0, words(5), True), (2, 0, words(5, seed=2), True), (3, 0, words(31), True)])
        monkeypatch.setattr(cuda_state, "upload", counted)
        found.append([direct.decode([1, 2, 3]) for _ in range(2 * direct.tokens + 3)])
    assert found[0] == found[1]
    assert len(sent) == (0 if room > 4 else 2), "twice the first two got a row at once"
