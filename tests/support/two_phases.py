"""A model of which a batch of each phase computes at once, played to its end.

The real scheduler, ``Handover`` and two ``Runner``s over one pool, or one ``Runner`` for both phases, on
tensors of the CPU. Whoever plays it says in which order work is begun and answered.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

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
from support.lanes import lane_spec
from support.ledger_runner import LedgerRunner

BLOCK_BYTES = 4096
ROWS = 40
MOST = 400  # batches until everything must have ended


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
        rows: int = ROWS,
        *,
        beside: bool = False,
        slow: bool = False,
        woven: bool = False,
        graphs: bool = True,
        cache: bool = False,
    ):
        width = read_spec(folder).blocks_per_row
        self._made = LedgerRunner({"m": folder}, rows * width, BLOCK_BYTES, paged=True)
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
        self._pool = self._made.pool.view(-1, BLOCK_BYTES)
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
