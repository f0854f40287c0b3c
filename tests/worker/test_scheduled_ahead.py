"""The scheduler that runs ahead, over the worker's GPU step on tensors of the CPU: the tokens are those of a
scheduler and a worker that do not, and nothing writes a row that was given back."""

import random
from collections import deque
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.lanes import lane_spec
from support.ledger_runner import LedgerRunner
from support.tiny_models import gemma3, llama

from muxd.engine.actions import Action, Ahead, Arrived, BatchDone, Emit, Ended, Launch, WorkerReady
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.messages import Decode, Prefill, Sampling
from muxd.worker.runner import Batch

_BLOCK_BYTES = 4096


class Host:
    """A daemon's part: real scheduler, ledger and Runner. ``late``: whether the worker takes up a step that
    was sent ahead only after the answer of the one in front."""

    def __init__(self, folder: Path, blocks: int, *, ahead: bool, late: random.Random):
        self._made = LedgerRunner({"m": folder}, blocks, _BLOCK_BYTES, paged=ahead)
        self._runner, self._late = self._made.runners["m"], late
        ledger = self._made.ledger
        lane = lane_spec(
            model="m", share=100, row_tokens=self._made.row_tokens["m"],
            blocks_per_row=self._runner._spec.blocks_per_row, max_context=500, max_running=4, max_queue=100,
            capacity_rows=ledger.limit("m"), prefix_cache=False, windowed=self._made.windowed["m"],
        )  # fmt: skip
        self._scheduler = Scheduler(
            [lane], ledger, Shares([100]), Settings(0.5, 40, look_ahead=8, run_ahead=ahead)
        )
        self._commands, self._begun = deque[Prefill | Decode](), deque[Batch]()
        self._pool = self._made.pool.view(-1, _BLOCK_BYTES)
        self._free: set[int] = self._free_blocks()
        self.answers: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.sent_ahead = 0
        self._handle(self._scheduler.handle(WorkerReady("m"), 0.0))

    def submit(
        self, id: int, prompt: list[int], tokens: int, sampling: Sampling, eos: frozenset[int]
    ) -> None:
        sequence = Sequence(id, Request(str(id), "m", prompt, tokens, sampling, eos), 0.0)
        self._handle(self._scheduler.handle(Arrived(sequence), 0.0))

    def step(self) -> bool:
        """One batch to its end. False: nothing runs."""
        if not self._commands:
            return False
        batch = self._begun.popleft() if self._begun else self._runner.begin(self._commands[0])
        if len(self._commands) == 2 and self._late.random() < 0.5:
            self._begun.append(self._runner.begin(self._commands[1]))
        done = batch.finish()
        self._commands.popleft()
        self._handle(self._scheduler.handle(BatchDone("m", done.batch, done.tokens), 0.0))
        assert bool((self._pool[sorted(self._free)] == 0xFF).all()), "a row was written after its release"
        return True

    def _handle(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Ahead():
                    self._commands.append(action.flight.command)
                    self.sent_ahead += 1
                case Launch() if not action.ahead:
                    self._commands.append(action.flight.command)
                case Emit():
                    for sequence, token in zip(action.sequences, action.tokens, strict=True):
                        assert sequence.id not in self.ended
                        self.answers.setdefault(sequence.id, []).append(token)
                case Ended():
                    self.ended.add(action.sequence.id)
        now = self._free_blocks()
        self._pool[sorted(now - self._free)] = 0xFF  # as garbage as another model may leave it
        self._free = now

    def _free_blocks(self) -> set[int]:
        ledger = self._made.ledger
        return set(np.asarray(ledger._stack[: ledger.free_blocks]).tolist())


@pytest.fixture(scope="module", params=[llama, gemma3])
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, few_graphs: None
) -> Path:
    """Of gemma3 what windows have passed is garbage at once: nothing has a name."""
    folder = tmp_path_factory.mktemp("model")
    request.param(folder)
    return folder


def words(seed: int, length: int) -> list[int]:
    return random.Random(seed * 100 + length).choices(range(3, 300), k=length)


SAMPLINGS = st.sampled_from(
    [
        Sampling(temperature=0.0),
        Sampling(temperature=0.9, seed=4),
        Sampling(top_p=0.9, repetition_penalty=1.3),
    ]
)
REQUESTS = st.lists(
    st.tuples(st.integers(1, 50), st.integers(1, 25), SAMPLINGS, st.integers(0, 12)), min_size=1, max_size=6
)


@settings(max_examples=examples(10))
@given(REQUESTS, st.integers(0, 10), st.integers(0, 99))
def test_tokens_are_the_same_and_no_row_is_written_late(
    folder: Path, requests: list[tuple[int, int, Sampling, int]], pause: int, seed: int
) -> None:
    """Each answer may stop at a token it really says; the pool is short, so that some are preempted."""
    plain, stops = Host(folder, 40 * 8, ahead=False, late=random.Random(0)), []
    for i, (length, tokens, sampling, _) in enumerate(requests):
        plain.submit(i, words(i, length), tokens, sampling, frozenset())
        while plain.step():
            pass
    for i, (_, _, _, place) in enumerate(requests):
        said = plain.answers[i]
        stops.append(frozenset([said[place]]) if place < len(said) else frozenset[int]())
    host = Host(folder, 40 * 8, ahead=True, late=random.Random(seed))
    for i, (length, tokens, sampling, _) in enumerate(requests):
        host.submit(i, words(i, length), tokens, sampling, stops[i])
        for _ in range(pause):
            host.step()
    while host.step():
        pass
    assert host.ended == set(range(len(requests)))
    for i, stop in enumerate(stops):
        said = plain.answers[i]
        end = next((at for at, token in enumerate(said) if token in stop), len(said))
        assert host.answers.get(i, []) == said[:end]
    assert host._made.ledger.unheld_blocks == host._made.ledger.total_blocks


def test_it_really_runs_ahead(folder: Path) -> None:
    host = Host(folder, 40 * 8, ahead=True, late=random.Random(1))
    host.submit(0, [5, 6, 7], 20, Sampling(temperature=0.0), frozenset())
    while host.step():
        pass
    assert host.sent_ahead == 18  # of 19 steps: the first is not ahead of anything
    assert len(host.answers[0]) == 20
