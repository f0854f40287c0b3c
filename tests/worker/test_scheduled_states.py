"""The real scheduler over real states: answers are those of requests that are alone, whoever is preempted,
and whenever the worker is lost."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.lanes import lane_spec
from support.ledger_runner import LedgerRunner
from support.tiny_models import qwen3_5, words

from muxd.engine.actions import (
    Action,
    Arrived,
    BatchDone,
    Emit,
    Ended,
    Launch,
    Preempted,
    WorkerLost,
    WorkerReady,
)
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.errors import WorkerLost as WorkerLostError
from muxd.messages import Decode, Prefill, Sampling

_BLOCK_BYTES = 4096


class Host:
    """A daemon's part over ``blocks`` head blocks; freed ones are filled with NaN."""

    def __init__(self, folder: Path, blocks: int):
        self._made = LedgerRunner({"m": folder}, blocks, _BLOCK_BYTES)
        self.ledger, self._runner = self._made.ledger, self._made.runners["m"]
        lane = lane_spec(
            model="m", share=100, row_tokens=self._made.row_tokens["m"],
            blocks_per_row=self._runner._spec.blocks_per_row, max_context=500, max_running=4, max_queue=100,
            capacity_rows=self.ledger.limit("m"), state_rows=self._made.state_rows["m"],
        )  # fmt: skip
        self._scheduler = Scheduler([lane], self.ledger, Shares([100]), Settings(0.5, 24, look_ahead=8))
        self._pool = self._made.pool.view(-1, _BLOCK_BYTES)
        self._free = self._free_blocks()
        self._command: Prefill | Decode | None = None
        self.answers: dict[int, list[int]] = {}
        self.ended: set[int] = set()
        self.preempted = 0
        self.cached: dict[int, int] = {}  # tokens that a request found computed
        self._handle(self._scheduler.handle(WorkerReady("m"), 0.0))

    def submit(self, id: int, prompt: list[int], tokens: int, sampling: Sampling) -> None:
        sequence = Sequence(id, Request(str(id), "m", prompt, tokens, sampling, frozenset()), 0.0)
        self._handle(self._scheduler.handle(Arrived(sequence), 0.0))

    def step(self) -> bool:
        """One batch to its end. False: nothing runs."""
        if (command := self._command) is None:
            return False
        self._command = None
        done = self._runner.begin(command).finish()
        self._handle(self._scheduler.handle(BatchDone("m", done.batch, done.tokens), 0.0))
        assert bool((self._pool[sorted(self._free)] == 0xFF).all()), "a row was written after its release"
        return True

    def lose(self) -> None:
        """The batch that runs is lost with its worker; the next one knows of nothing."""
        self._command = None
        self._runner = self._made.another("m")
        self._handle(self._scheduler.handle(WorkerLost("m", WorkerLostError("killed"), blameless=True), 0.0))
        self._handle(self._scheduler.handle(WorkerReady("m"), 0.0))

    def _handle(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Launch():
                    self._command = action.flight.command
                    self.cached |= {one.id: one.cached for one in action.flight.sequences}
                case Emit():
                    for sequence, token in zip(action.sequences, action.tokens, strict=True):
                        self.answers.setdefault(sequence.id, []).append(token)
                case Ended():
                    self.ended.add(action.sequence.id)
                case Preempted():
                    self.preempted += 1
        now = self._free_blocks()
        self._pool[sorted(now - self._free)] = 0xFF
        self._free = now

    def _free_blocks(self) -> set[int]:
        return set(np.asarray(self.ledger._stack[: self.ledger.free_blocks]).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    qwen3_5(folder)
    return folder


SAMPLINGS = st.sampled_from([Sampling(temperature=0.0), Sampling(temperature=0.9, seed=4)])
REQUESTS = st.lists(st.tuples(st.integers(1, 50), st.integers(1, 25), SAMPLINGS), min_size=1, max_size=5)


def played(
    folder: Path, blocks: int, requests: list[tuple[int, int, Sampling]], pause: int, losses: int
) -> Host:
    host, draw = Host(folder, blocks), random.Random(losses)
    for id, (length, tokens, sampling) in enumerate(requests):
        host.submit(id, words(length, id), tokens, sampling)
        for _ in range(pause):
            host.step()
    lost = 0
    while host.step():
        if lost < losses and draw.random() < 0.2:
            host.lose()
            lost += 1
    assert host.ended == set(range(len(requests)))
    assert host.ledger.held_blocks == 0
    host.ledger.audit()
    return host


@settings(max_examples=examples(8), deadline=None)
@given(REQUESTS, st.integers(0, 8), st.integers(0, 2))
def test_answers_are_those_of_requests_that_are_alone(
    folder: Path, requests: list[tuple[int, int, Sampling]], pause: int, losses: int
) -> None:
    host = played(folder, 150, requests, pause, losses)
    alone = Host(folder, 4000)
    for id, (length, tokens, sampling) in enumerate(requests):
        alone.submit(id, words(length, id), tokens, sampling)
        while alone.step():
            pass
    assert host.answers == alone.answers


def test_some_are_preempted_in_a_pool_that_is_short(folder: Path) -> None:
    greedy = Sampling(temperature=0.0)
    requests = [(20, 60, greedy), (24, 60, greedy), (28, 60, greedy)]
    short, wide = played(folder, 110, requests, 1, 0), played(folder, 4000, requests, 1, 0)
    assert short.preempted
    assert not wide.preempted
    assert short.answers == wide.answers


@pytest.mark.parametrize("blocks", [4000, 200])
def test_prompts_that_begin_alike_begin_behind_a_copy_of_a_state(folder: Path, blocks: int) -> None:
    """Answers are those of prompts computed from their first token, also where copies come and go."""
    greedy, begin = Sampling(temperature=0.0), words(130, 77)
    host, alone = Host(folder, blocks), []
    for id in range(8):
        prompt = begin[: 100 + 4 * id] + words(5 + 7 * id, id)
        host.submit(id, prompt, 12, greedy)
        for _ in range(4 if id % 2 else 40):
            host.step()
        other = Host(folder, 4000)
        other.submit(0, prompt, 12, greedy)
        while other.step():
            pass
        alone.append(other.answers[0])
    while host.step():
        pass
    assert [host.answers[id] for id in range(8)] == alone
    assert sum(cached > 0 for cached in host.cached.values()) >= (6 if blocks > 1000 else 1)
    assert host.ledger.held_blocks == 0
