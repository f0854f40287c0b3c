"""The order of calls in which graphs are recorded, over a stand-in for torch's graphs and their memory pools.

The pools behave as in torch's allocator (CUDACachingAllocator.cpp, ``create_or_incref_pool``): a pool lives
while a graph or a tensor made in it does, and one without graphs must not be recorded into.
"""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from muxd.worker import cuda_step
from muxd.worker.cuda_graphs import CudaRecorder, KeptGraphs, StepGraphs

padding = partial(cuda_step.padding, 6)


class Pools:
    """Graphs and living results of each pool."""

    def __init__(self) -> None:
        self.graphs: dict[int, int] = {}
        self.results: dict[int, weakref.WeakSet[torch.Tensor]] = {}

    def enter(self, pool: int) -> None:
        for empty in [p for p, n in self.graphs.items() if n == 0 and not self.results[p]]:
            del self.graphs[empty]  # ``empty_cache``, with which every capture begins
        assert self.graphs.setdefault(pool, 1), "use_count > 0 INTERNAL ASSERT FAILED"
        self.results.setdefault(pool, weakref.WeakSet())


class Stream:
    def __eq__(self, other: object) -> bool:
        return self is other

    def wait_stream(self, other: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        pass


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Pools:
    pools, default = Pools(), Stream()

    class Graph:
        def __init__(self) -> None:
            self.number = 0

        def pool(self) -> int:
            return self.number

        def replay(self) -> None:
            pass

        def __del__(self) -> None:
            pools.graphs[self.number] -= 1

    @contextmanager
    def graph(made: Graph, pool: int | None, **_: Any) -> Iterator[None]:
        made.number = pool or len(pools.results) + 1
        known = made.number in pools.graphs
        pools.enter(made.number)
        pools.graphs[made.number] += known
        yield

    fake = SimpleNamespace(
        Stream=Stream, CUDAGraph=Graph, graph=graph, stream=lambda stream: nullcontext(),
        current_stream=lambda: default, default_stream=lambda: default,
    )  # fmt: skip
    monkeypatch.setattr("muxd.worker.cuda_graphs.torch.cuda", fake)
    return pools


def test_graphs_are_recorded_anew_while_a_result_of_the_old_ones_is_held(pools: Pools) -> None:
    """As when the row lists move: the flight of the step before still holds its hidden states."""

    def step(mode: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.zeros(len(tensors[0]), 1)

    graphs = StepGraphs(step, padding, torch.device("cpu"), KeptGraphs(CudaRecorder()), (1, 2))
    graphs.record(0, 0, 1)
    graphs.record(0, 1, 1, 2)
    assert pools.graphs == {1: 4}, "all graphs share one pool"
    held = graphs.run(0, 0, 2, padding(0, 2))
    pools.results[1].add(held)
    graphs.forget()
    gc.collect()
    assert pools.graphs == {1: 0}
    graphs.record(0, 0, 1)
    assert pools.graphs == {1: 0, 2: 2}
    del held
    graphs.record(0, 1, 1, 2)
    assert pools.graphs == {2: 4}, "the old pool went with the last of its results"


def test_the_graphs_of_a_mask_that_was_not_used_for_long_give_their_memory_back(pools: Pools) -> None:
    def step(mode: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.zeros(len(tensors[0]), 1)

    graphs = StepGraphs(step, padding, torch.device("cpu"), KeptGraphs(CudaRecorder()), (1, 2), masks=2)
    for mask in (0, 1, 2):
        assert graphs.crowded(mask) is None
        graphs.record(mask, 0, 1)
    assert pools.graphs == {1: 2, 2: 2, 3: 2}, "each mask has a pool of its own"
    graphs.run(1, 0, 2, padding(0, 2))
    assert [graphs.crowded(mask) for mask in (0, 1, 2, 4)] == [None, None, None, 2]
    graphs.forget(2)
    gc.collect()
    assert pools.graphs == {1: 2, 2: 2, 3: 0}
    graphs.record(4, 0, 1)
    assert pools.graphs == {1: 2, 2: 2, 4: 2}
    assert [graphs.has(mask, 0, 1) for mask in (0, 1, 2, 4)] == [True, True, False, True]


def test_a_mask_keeps_its_memory_while_there_are_graphs_of_either_kind(pools: Pools) -> None:
    def step(mode: int, tensors: list[torch.Tensor]) -> torch.Tensor:
        return torch.zeros(len(tensors[0]), 1)

    kept_graphs, cpu = KeptGraphs(CudaRecorder()), torch.device("cpu")
    prompts, steps = (StepGraphs(step, padding, cpu, kept_graphs, (1, 2)) for _ in range(2))
    prompts.record(3, 0, 1)
    steps.record(3, 0, 2)
    assert pools.graphs == {1: 3}, "one memory for both: they run on one stream"
    prompts.forget(3)
    steps.record(3, 0, 1)
    gc.collect()
    assert pools.graphs == {1: 2}
    steps.forget(3)
    prompts.record(3, 0, 2)
    gc.collect()
    assert pools.graphs == {2: 1}


def test_collections_are_off_while_a_graph_is_recorded_and_on_again_behind_it(pools: Pools) -> None:
    seen: list[bool] = []

    def step() -> torch.Tensor:
        seen.append(gc.isenabled())
        return torch.zeros(1)

    recorder: Callable[..., Any] = CudaRecorder()
    recorder(step, 0)
    assert seen == [True, False]
    assert gc.isenabled()
