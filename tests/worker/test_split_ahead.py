"""A model of which a batch of each phase computes at once, and decode steps run ahead: real scheduler,
Handover and two Runners over one pool, or one Runner for both phases, on tensors of the CPU.

Work is begun and answered in any order that two workers can, or that one can: it begins commands as they
come, and its device ends prefills and steps in any order. There what a prefill has the device do may be done
as late as its answer, behind steps that began after it; or steps are woven in between its layers."""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from support.lanes import lane_spec
from support.ledger_runner import LedgerRunner
from support.tiny_models import llama, qwen3_5

from muxd.engine.actions import (
    Action,
    Ahead,
    Arrived,
    BatchDone,
    Cancelled,
    Emit,
    Ended,
    Event,
    Launch,
    Preempted,
    WorkerReady,
)
from muxd.engine.flight import Flight
from muxd.engine.handover import Phase
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.messages import Decode, Prefill, PromptScores, Sampling
from muxd.models.spec import read_spec
from muxd.worker.cuda_step import CudaStep
from muxd.worker.runner import Batch, Runner
from muxd.worker.sequence import Span
from muxd.worker.step import Copy, Sampled
from muxd.worker.step import Flight as Flown

_BLOCK_BYTES = 4096
_ROWS = 40
_MOST = 400  # batches until everything must have ended


@dataclass(eq=False)
class Sent:
    """A command that its worker has not answered. ``writes``: the rows it writes, with their sequences."""

    command: Prefill | Decode
    writes: list[tuple[Sequence, int]]
    begun: Batch | None = None


class Late:
    """A flight whose work the device does only when somebody waits for it."""

    def __init__(self, compute: Callable[[], Flown]):
        self._compute = compute
        self._flight: Flown | None = None

    @property
    def _done(self) -> Flown:
        if self._flight is None:
            with torch.inference_mode():
                self._flight = self._compute()
        return self._flight

    @property
    def hidden(self) -> torch.Tensor:
        return self._done.hidden

    def ready(self) -> bool:
        return True

    def result(self) -> Sampled:
        return self._done.result()

    def prompt_scores(self) -> list[PromptScores]:
        return self._done.prompt_scores()

    def vectors(self) -> list[tuple[int, bytes]]:
        return self._done.vectors()


def late(runner: Runner) -> None:
    """Its prefills are ``Late``, and in their order: nobody waits for the first part of one that copies a
    state on its way."""
    prefill, asked = runner._step.prefill, deque[Callable[[], Flown]]()

    def computed() -> Flown:
        while len(asked) > 1:
            asked.popleft()()
        return asked.popleft()()

    def later(spans: Items[Span], ends: Items[int], copies: Items[Copy] = ()) -> Flown:
        asked.append(lambda: prefill(spans, ends, copies))
        return Late(computed)

    runner._step.prefill = later  # type: ignore[method-assign]


class Pair:
    """A daemon's part with two workers, or one that is ``beside`` itself. What the scheduler sends lies in
    ``sent`` until it is begun: a worker may take its time. ``slow``: the one worker's prefills are late;
    ``woven``: between two of their layers, or before one that is a graph, a step begins and one ends;
    ``graphs``: whether prefills are. ``cache``: prompts share what they have in common."""

    def __init__(
        self,
        folder: Path,
        rows: int = _ROWS,
        *,
        beside: bool = False,
        slow: bool = False,
        woven: bool = False,
        graphs: bool = True,
        cache: bool = False,
    ):
        width = read_spec(folder).blocks_per_row
        self._made = LedgerRunner({"m": folder}, rows * width, _BLOCK_BYTES, paged=True)
        decodes = self._made.another("m")
        if not graphs:
            assert isinstance(decodes._step, CudaStep)
            decodes._step._prompts = None
        self._runners = {"prefill": decodes if beside else self._made.another("m"), "decode": decodes}
        self._beside, self._order = beside, deque[Sent]()
        if slow:
            late(decodes)
        if woven:
            decodes.weave(self._between)
        self.ledger, self._size = self._made.ledger, self._made.row_tokens["m"]
        lane = lane_spec(
            model="m", share=50, row_tokens=self._size, blocks_per_row=width, max_context=500, max_running=4,
            max_queue=100, capacity_rows=self.ledger.limit("m"), prefix_cache=cache, split=True,
            apart=not beside, windowed=self._made.windowed["m"], state_rows=self._made.state_rows["m"],
        )  # fmt: skip
        self._scheduler = Scheduler(
            [lane], self.ledger, Shares([50, 100]), Settings(0.5, 24, look_ahead=8, run_ahead=True)
        )
        self.sent: dict[Phase, deque[Sent]] = {"prefill": deque(), "decode": deque()}
        self._pool = self._made.pool.view(-1, _BLOCK_BYTES)
        self._free = self._free_blocks()
        self.sequences: list[Sequence] = []
        self.answers: list[list[int]] = []
        self.over: set[int] = set()  # ended, or nobody reads it any more
        self.copied = 0  # states, into the cache and out of it
        self.ahead = self.side_by_side = self.preempted = self.inside = 0
        self._handle(
            WorkerReady("m", {"both": "both"} if beside else {"prefill": "prefill", "decode": "decode"})
        )

    # ---- what may happen --------------------------------------------------------------------------

    def arrive(self, prompt: list[int], tokens: int, sampling: Sampling, eos: frozenset[int]) -> None:
        number = len(self.sequences)
        request = Request(str(number), "m", prompt, tokens, sampling, eos)
        self.sequences.append(Sequence(number, request, float(number)))
        self.answers.append([])
        self._handle(Arrived(self.sequences[-1]))

    def cancel(self, number: int) -> None:
        if number not in self.over:
            self.over.add(number)
            self._handle(Cancelled(self.sequences[number]))

    def begin(self, phase: Phase) -> None:
        """The worker asks its device for the next command that it has."""
        sent = next((one for one in self.sent[phase] if one.begun is None), None)
        while sent is not None and sent.begun is None:
            # One worker takes its commands in their order.
            first = self._order.popleft() if self._beside else sent
            first.begun = self._runners[phase].begin(first.command)
            self._check()

    def _between(self) -> None:
        if self._order and isinstance(self._order[0].command, Decode):
            first = self._order.popleft()
            first.begun = self._runners["decode"].begin(first.command)
            self.inside += 1
        if self.sent["decode"] and self.sent["decode"][0].begun is not None:
            self._answer("decode")

    def answer(self, phase: Phase) -> None:
        """The worker's oldest batch is done."""
        if not self.sent[phase]:
            return
        if self.sent[phase][0].begun is None:
            self.begin(phase)
        if self.sent[phase] and self.sent[phase][0].begun is not None:  # else it was answered meanwhile
            self._answer(phase)

    def _answer(self, phase: Phase) -> None:
        batch = self.sent[phase].popleft().begun
        assert batch is not None
        done = batch.finish()
        self._handle(BatchDone("m", done.batch, done.tokens))

    @property
    def busy(self) -> list[Phase]:
        return [phase for phase, sent in self.sent.items() if sent]

    # ---- what the daemon does ---------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        actions = self._scheduler.handle(event, 0.0)
        for action in actions:
            self._perform(action)
        now = self._free_blocks()
        self._pool[sorted(now - self._free)] = 0xFF  # as garbage as another model may leave it
        self._free = now
        self.side_by_side += len(self.busy) == 2
        self._check()

    def _perform(self, action: Action) -> None:
        match action:
            case Ahead():
                self.ahead += 1
                self._send(action.flight, behind=1)
            case Launch() if not action.ahead:
                self._send(action.flight, behind=0)
            case Emit():
                for sequence, token in zip(action.sequences, action.tokens, strict=True):
                    assert sequence.id not in self.over
                    self.answers[sequence.id].append(token)
            case Ended():
                self.over.add(action.sequence.id)
            case Preempted():
                self.preempted += 1

    def _send(self, flight: Flight, behind: int) -> None:
        """``behind``: steps in front of it whose tokens nobody has counted."""
        command = flight.command
        if isinstance(command, Prefill):
            spans = [(c.seq, c.start, c.start + len(c.tokens) // 4) for c in command.chunks]
            self.copied += sum(bool(c.copy) + bool(c.origin) for c in command.chunks)
        else:
            known = [(seq, self.sequences[seq].computed + behind) for seq in command.seqs]
            spans = [(seq, at, at + 1) for seq, at in known]
        writes = [
            (self.sequences[seq], self.sequences[seq].rows[i])
            for seq, start, stop in spans
            for i in range(start // self._size, -(-stop // self._size))
        ]
        phase: Phase = "prefill" if flight.prefill else "decode"
        assert flight.worker == ("both" if self._beside else phase)
        self.sent[phase].append(Sent(command, writes))
        self._order.append(self.sent[phase][-1])
        assert len(self.sent["decode"]) <= 2
        assert len(self.sent["prefill"]) <= 1

    def _check(self) -> None:
        self.ledger.audit()
        assert bool((self._pool[sorted(self._free)] == 0xFF).all()), "a row was written after its release"
        writes = [pair for sent in self.sent.values() for one in sent for pair in one.writes]
        for sequence, row in writes:
            assert row in sequence.rows, "a row that may still be written was given back"
        writers: dict[int, int] = {}
        for sequence, row in writes:
            assert writers.setdefault(row, sequence.id) == sequence.id, "a row of two sequences"

    def _free_blocks(self) -> set[int]:
        return set(np.asarray(self.ledger._stack[: self.ledger.free_blocks]).tolist())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, few_graphs: None) -> Path:
    folder = tmp_path_factory.mktemp("model")
    llama(folder)
    return folder


def words(number: int, length: int) -> list[int]:
    return Random(number * 100 + length).choices(range(3, 300), k=length)


@pytest.fixture(scope="module")
def reference(folder: Path) -> LedgerRunner:
    return LedgerRunner({"m": folder}, _ROWS * 6, _BLOCK_BYTES, paged=False)


@pytest.fixture(scope="module")
def keeping(tmp_path_factory: pytest.TempPathFactory, few_graphs: None) -> tuple[Path, LedgerRunner]:
    """A model whose sequences have a state, and who computes it alone."""
    folder = tmp_path_factory.mktemp("keeping")
    qwen3_5(folder)
    return folder, LedgerRunner({"m": folder}, 1000, _BLOCK_BYTES, paged=False)


def alone(reference: LedgerRunner, prompt: list[int], tokens: int, sampling: Sampling) -> list[int]:
    one = reference.start("m", prompt, sampling=sampling, cache=False)
    while len(one.answer) < tokens:
        reference.step(one)
    reference.finish(one)
    return one.answer


SAMPLINGS = (
    Sampling(temperature=0.0),
    Sampling(temperature=0.9, seed=4),
    Sampling(top_p=0.9, repetition_penalty=1.3, seed=7),
)
ARRIVE = st.tuples(
    st.just("arrive"), st.integers(1, 50), st.integers(1, 20), st.integers(0, 2), st.integers(0, 12)
)
PHASE = st.sampled_from(["prefill", "decode", "decode"])
EVENTS = st.lists(
    st.one_of(
        ARRIVE,
        st.tuples(st.just("begin"), PHASE),
        st.tuples(st.just("answer"), PHASE),
        st.tuples(st.just("answer"), PHASE),
        st.tuples(st.just("cancel"), st.integers(0, 5)),
    ),
    min_size=5,
    max_size=60,
)

HOW: list[dict[str, bool]] = [
    {},
    {"beside": True},
    {"beside": True, "slow": True},
    {"beside": True, "woven": True},
    {"beside": True, "woven": True, "graphs": False},
]
_NAMES = ["two workers", "one", "one, prefills late", "one, steps before graphs", "one, steps between layers"]


@settings(max_examples=examples(60))
@given(EVENTS, st.sampled_from([_ROWS, 9]), st.integers(0, 99), st.sampled_from(HOW))
def test_any_order_of_two_workers_or_phases_gives_the_tokens_of_one_request_alone(
    folder: Path,
    reference: LedgerRunner,
    events: list[tuple],  # type: ignore[type-arg]
    rows: int,
    seed: int,
    how: dict[str, bool],
) -> None:
    """Each answer may stop at a token it really says. With few rows some are preempted."""
    pair, expected, rest = Pair(folder, rows, **how), list[list[int]](), Random(seed)
    for kind, *args in events:
        if kind == "arrive" and len(expected) < 5:
            length, tokens, which, stop = args
            prompt, sampling = words(len(expected), length), SAMPLINGS[which]
            said = alone(reference, prompt, tokens, sampling)
            stops = frozenset(said[stop : stop + 1])
            expected.append(said[: next((i for i, token in enumerate(said) if token in stops), len(said))])
            pair.arrive(prompt, tokens, sampling, stops)
        elif kind == "begin":
            pair.begin(*args)
        elif kind == "answer":
            pair.answer(*args)
        elif kind == "cancel" and args[0] < len(expected):
            pair.cancel(args[0])
    left = set(range(len(expected))) - pair.over
    for _ in range(_MOST):
        if not pair.busy:
            break
        phase = rest.choice(pair.busy)
        (pair.begin if rest.random() < 0.4 else pair.answer)(phase)
    assert not pair.busy, "the workers do not come to rest"
    assert left <= pair.over
    for number, whole in enumerate(expected):
        got = pair.answers[number]
        assert got == whole if number in left else got == whole[: len(got)]
    assert pair.ledger.unheld_blocks == pair.ledger.total_blocks


def play(pair: Pair, until: Callable[[], bool]) -> None:
    """Prompts first; every batch is begun as late as can be."""
    for _ in range(_MOST):
        if until():
            return
        pair.answer("prefill" if pair.sent["prefill"] else "decode")
    raise AssertionError("it never comes to that")


@pytest.mark.parametrize("how", HOW, ids=_NAMES)
def test_a_prompt_is_computed_beside_two_steps_and_joins_them(
    folder: Path, reference: LedgerRunner, how: dict[str, bool]
) -> None:
    pair, greedy = Pair(folder, **how), SAMPLINGS[0]
    expected = [alone(reference, words(i, 20 + i), 40, greedy) for i in range(3)]
    for number in range(2):
        pair.arrive(words(number, 20 + number), 40, greedy, frozenset())
        play(pair, lambda: bool(pair.answers[-1]))
    play(pair, lambda: [len(sent.writes) for sent in pair.sent["decode"]] == [2, 2])
    pair.arrive(words(2, 22), 40, greedy, frozenset())
    pair.cancel(0)
    play(pair, lambda: len(pair.sent["decode"]) == 2 and bool(pair.answers[2]))
    play(pair, lambda: not pair.busy)
    assert pair.answers[1:] == expected[1:]
    assert pair.answers[0] == expected[0][: len(pair.answers[0])]
    assert pair.ahead > 10
    assert pair.side_by_side
    assert bool(pair.inside) is how.get("woven", False)
    assert pair.ledger.unheld_blocks == pair.ledger.total_blocks


@pytest.mark.parametrize("how", HOW[:4], ids=[*_NAMES[:3], "one, steps between layers"])
def test_states_go_from_prompts_to_steps_and_their_copies_to_later_prompts(
    keeping: tuple[Path, LedgerRunner], how: dict[str, bool]
) -> None:
    """A prompt's state is copied where its last whole row ends, while others step; its own next step changes
    it. Prompts that begin alike begin behind the copy."""
    folder, one = keeping
    pair, greedy = Pair(folder, 200, cache=True, **how), SAMPLINGS[0]
    begin = words(0, 9 * one.row_tokens["m"])
    prompts = [begin, begin + words(1, 5), begin + words(2, 30), words(3, 73), words(3, 73) + words(4, 9)]
    expected = [alone(one, prompt, 12, greedy) for prompt in prompts]
    for number, prompt in enumerate(prompts):
        pair.arrive(prompt, 12, greedy, frozenset())
        play(pair, lambda: bool(pair.answers[-1]))
        assert pair.copied > number
    play(pair, lambda: not pair.busy)
    assert pair.answers == expected
    assert pair.side_by_side
    assert pair.ledger.unheld_blocks == pair.ledger.total_blocks
