"""Decode steps recorded for some batch sizes: which there are, when they are made, the same results."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.direct_runner import DirectRunner
from support.tiny_models import llama, words

from muxd.device.green import KEPT
from muxd.worker.cuda_graphs import BUCKETS, Again, DecodeGraphs, bucket, buckets_for
from muxd.worker.cuda_sampling import SamplingMode
from muxd.worker.cuda_step import CudaStep, padding


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
    assert kept == [(SamplingMode.FILTERED, 1), (SamplingMode.FILTERED, 4)], "none is wanted yet"
    prompts = [words(n, seed=5) for n in (3, 9, 6, 4, 5)]  # more than was said still get their tokens
    assert direct.generate(prompts, 3) == DirectRunner(folder).generate(prompts, 3)


@given(st.sampled_from(SamplingMode), st.integers(1, 200))
def test_padding_is_nobody(mode: SamplingMode, size: int) -> None:
    lines, tokens, positions, lengths, *told = padding(mode, size)
    assert all(len(array) == size for array in (lines, tokens, positions, lengths, *told))
    assert (positions == -1).all()
    assert not any(array.any() for array in (lines, tokens, lengths))
    if mode is not SamplingMode.GREEDY:
        assert not told[0].any()  # the argmax
        assert (told[-1] == -1).all()  # nobody's counts


def test_graphs_are_recorded_when_they_are_wanted_and_of_each_mask_the_largest_first() -> None:
    asked: list[tuple[int, int]] = []

    def step(mode: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        asked.append((mode, len(tensors[0])))
        return torch.stack(tensors[:4]).sum(0)[:, None].float()

    graphs = DecodeGraphs(step, padding, torch.device("cpu"), Again(), (1, 2, 8))
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

    graphs = DecodeGraphs(step, padding, torch.device("cpu"), Again(), (1, 2, 4, 8), most=3)

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
