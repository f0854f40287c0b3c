"""A unit without processes: the real scheduler and ledger, and workers that only keep the books.

Tests choose the order in which batches finish.
"""

from collections.abc import Collection

from muxd.engine.actions import (
    Action,
    Ahead,
    Arrived,
    Asleep,
    BatchDone,
    Cancelled,
    Emit,
    Ended,
    Event,
    Failed,
    Launch,
    Overdue,
    Preempted,
    Rejected,
    Resumed,
    Retiring,
    Tick,
    WorkerLost,
    WorkerReady,
)
from muxd.engine.flight import Flight
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Phase, Sequence
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.errors import WorkerLost as WorkerLostError
from muxd.messages import NO_TOKEN, Decode, Phases, Pooling, Prefill, Sampling
from muxd.pool.ledger import Ledger
from muxd.pool.windowed import row_ids
from support.bench_worker import Spec, Worker
from support.lanes import lane_spec

EOS = 1
_GREEDY = Sampling(temperature=0.0)

MOST_PREFILLS = {"mux": 2, "spatial": 1000}  # at once; of other policies one


class BenchUnit:
    """Events go in by method; ``served``, ``failed``, ``rejected`` and ``emitted`` tell what came out."""

    def __init__(
        self,
        specs: list[Spec],
        total_blocks: int = 64,
        *,
        rungs: tuple[int, ...] = (50, 100),
        overbook: int = 0,
        settings: Settings | None = None,
        policy: str = "mux",
        ready: bool = True,
        lendable: int = 0,
        parts: int = 0,
    ):
        self.ledger = Ledger(total_blocks, total_blocks + lendable)
        self.settings = settings or Settings(drain_timeout=0.5, prefill_tokens=16, look_ahead=4)
        lanes = []
        for spec in specs:
            self.ledger.add_model(
                spec.name,
                spec.blocks,
                row_ids(total_blocks + lendable, spec.blocks, spec.windowed),
                spec.min_blocks,
                row_tokens=spec.row_tokens,
                state_rows=spec.state_rows,
                windowed=spec.windowed,
            )
        for spec in specs:
            capacity = self.ledger.limit(spec.name)
            lanes.append(
                lane_spec(
                    model=spec.name,
                    share=spec.share,
                    row_tokens=spec.row_tokens,
                    blocks_per_row=spec.blocks,
                    max_context=spec.max_context,
                    max_running=spec.max_running,
                    max_queue=spec.max_queue,
                    capacity_rows=capacity,
                    weight=spec.weight,
                    prefix_cache=spec.prefix_cache,
                    cap=spec.cap,
                    split=spec.split,
                    apart=spec.split and not spec.beside,
                    ttft_slo=spec.ttft_slo,
                    whole=spec.whole,
                    state_rows=spec.state_rows,
                    windowed=spec.windowed,
                )
            )
        self.shares = Shares(rungs, overbook)
        self.scheduler = Scheduler(lanes, self.ledger, self.shares, self.settings, policy=policy, parts=parts)
        self._pool: dict[int, tuple[str, ...]] = {}
        self.specs = {spec.name: spec for spec in specs}
        self.workers: dict[str, Worker] = {}  # of a split model: "<model>/prefill", "<model>/decode"
        for spec in specs:
            self._spawn(spec.name)
        self.now = 0.0
        self.all: list[Sequence] = []
        self.outcome: dict[int, str] = {}
        self.emitted: dict[int, list[int]] = {}
        self.preempted: list[int] = []
        self.resumed: list[int] = []
        self.overdue: list[Overdue] = []
        self.errors: dict[int, str | None] = {}  # code of what failed
        self.launches: list[tuple[float, str, Prefill | Decode]] = []
        if ready:
            for spec in specs:
                self.revive(spec.name)

    def _spawn(self, model: str) -> None:
        spec = self.specs[model]
        first = Worker(spec, pool=self._pool)
        if not spec.split:
            self.workers[model] = first
            return
        second = first.beside() if spec.beside else Worker(spec, pool=self._pool)
        self.workers[f"{model}/prefill"], self.workers[f"{model}/decode"] = first, second

    def _names(self, model: str) -> dict[Phases, str]:
        if not self.specs[model].split or self.specs[model].beside:
            return {"both": model}
        return {"prefill": f"{model}/prefill", "decode": f"{model}/decode"}

    def _worker(self, flight: Flight) -> Worker:
        """Who keeps the books of such batches."""
        spec = self.specs[flight.model]
        assert flight.worker in self._names(flight.model).values()
        phase = "prefill" if flight.prefill else "decode"
        return self.workers[f"{flight.model}/{phase}" if spec.split else flight.model]

    def handle(self, event: Event) -> list[Action]:
        actions = self.scheduler.handle(event, self.now)
        for block in self._free_blocks():
            self._pool.pop(block, None)  # as garbage as another model may leave it
        for action in actions:
            self._perform(action)
        self.check()
        return actions

    def _free_blocks(self) -> list[int]:
        free: list[int] = self.ledger._stack[: self.ledger.free_blocks].tolist()
        return free

    def _perform(self, action: Action) -> None:
        match action:
            case Launch():
                flight = action.flight
                self.launches.append((self.now, flight.model, flight.command))
                if not action.ahead:
                    self._worker(flight).receive(flight.command)
                assert self._worker(flight).number == flight.batch
            case Ahead():
                told = action.flight.command
                assert isinstance(told, Decode)
                assert not told.joined
                self._worker(action.flight).queue(told)
            case Emit():
                for sequence, token in zip(action.sequences, action.tokens, strict=True):
                    assert sequence.id not in self.outcome, "a token after the end"
                    self.emitted.setdefault(sequence.id, []).append(token)
            case Ended():
                self._end(action.sequence, "served")
            case Failed():
                self._end(action.sequence, "failed")
                self.errors[action.sequence.id] = action.error.code
            case Resumed():
                self.resumed.append(action.sequence.id)
            case Overdue():
                self.overdue.append(action)
            case Rejected():
                self._end(action.sequence, "refused")
            case Preempted():
                self.preempted.append(action.sequence.id)

    @staticmethod
    def _check_queue(queue: list[Sequence]) -> None:
        """Suspects, others that have begun, and of each key those that have not, all by arrival."""
        begun = [(not s.suspect, s.arrived) for s in queue if s.counter is not None]
        assert begun == sorted(begun)
        assert all(sequence.counter is not None for sequence in queue[: len(begun)])
        for key in {sequence.request.key for sequence in queue}:
            arrived = [s.arrived for s in queue if s.counter is None and s.request.key == key]
            assert arrived == sorted(arrived)

    def _end(self, sequence: Sequence, outcome: str) -> None:
        assert sequence.id not in self.outcome, "ended twice"
        self.outcome[sequence.id] = outcome

    # ---- what happens -----------------------------------------------------------------------------

    def arrive(
        self,
        model: str,
        prompt: int,
        max_tokens: int = 8,
        eos: frozenset[int] = frozenset(),
        *,
        same: int = 0,
        sampling: Sampling = _GREEDY,
        pooling: Pooling = "",
        key: str = "",
        weight: float = 1.0,
        adapter: int = 0,
    ) -> Sequence:
        """The first ``same`` tokens are those of every such prompt, the rest is its own."""
        tokens = [7] * min(same, prompt) + [1000 + len(self.all)] * (prompt - min(same, prompt))
        asked = f"{model}'s {adapter}" if adapter else ""
        request = Request(
            f"r{len(self.all)}",
            model,
            tokens,
            max_tokens,
            sampling,
            eos,
            "",
            pooling,
            key,
            weight,
            adapter,
            asked,
        )
        sequence = Sequence(len(self.all), request, self.now)
        self.all.append(sequence)
        self.handle(Arrived(sequence))
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        if sequence.id not in self.outcome:
            self._end(sequence, "cancelled")
            self.handle(Cancelled(sequence))

    def tick(self) -> None:
        self.handle(Tick())

    def finish(
        self,
        name: str,
        seconds: float = 0.01,
        token: int = 5,
        stops: int = 0,
        nothing_for: Collection[int] = (),
    ) -> None:
        """The running batch of the worker ``name`` is done, ``seconds`` later; the i-th token is a stop where
        bit i of ``stops`` is set, and there is none for the sequences in ``nothing_for``."""
        worker, model = self.workers[name], name.partition("/")[0]
        assert worker.busy is not None
        self.now += seconds
        batch, owners = worker.busy.batch, worker.sampling()
        tokens = [EOS if stops >> i & 1 else token for i in range(len(owners))]
        tokens = [NO_TOKEN if owner in nothing_for else t for owner, t in zip(owners, tokens, strict=True)]
        worker.done(token)
        self.handle(BatchDone(model, batch, tokens, seconds))

    def lose(self, model: str, *, final: bool = False, blameless: bool = False) -> None:
        self._spawn(model)
        self.handle(WorkerLost(model, WorkerLostError("killed"), final, blameless))

    def nap(self, model: str, kind: str) -> None:
        """Its worker is to go, goes, or another one has come; what cannot happen now does not."""
        asleep = self.scheduler.lanes[model].asleep
        if kind == "wake":
            if asleep:
                self.revive(model)
        elif not asleep and kind == "retire":
            self.handle(Retiring(model))
        elif not asleep:
            self._spawn(model)
            self.handle(Asleep(model))

    def wake_all(self) -> None:
        for model, lane in self.scheduler.lanes.items():
            if lane.retiring:
                self.nap(model, "sleep")
            if lane.asleep:
                self.revive(model)

    def revive(self, model: str) -> None:
        self.handle(WorkerReady(model, self._names(model)))

    def busy(self) -> list[str]:
        """Names of the workers that compute."""
        return [name for name, worker in self.workers.items() if worker.busy is not None]

    def run(self, steps: int = 100_000) -> None:
        """Finish batches in turn until nothing runs; who sleeps is woken."""
        self.wake_all()
        for _ in range(steps):
            running = self.busy()
            if not running:
                return
            self.finish(min(running, key=lambda m: self.workers[m].busy.batch))  # type: ignore[union-attr]
        raise AssertionError("the unit does not come to rest")

    def ahead(self, model: str) -> set[int]:
        """Sequences in a step that was sent before the one in front of it was done."""
        lane = self.scheduler.lanes[model]
        sent = [lane.ahead, lane.step] if self.settings.run_ahead else []
        return {s.id for flight in sent if flight is not None for s in flight.sequences}

    # ---- invariants -------------------------------------------------------------------------------

    def check(self) -> None:
        """Design §3 and §5, after every event."""
        self.ledger.audit()
        booked = sum(w.busy.share for w in self.workers.values() if w.busy is not None)
        assert booked == self.shares.limit - self.shares.free <= self.shares.limit
        prefills = sum(isinstance(w.busy, Prefill) for w in self.workers.values())
        assert prefills <= MOST_PREFILLS.get(self.scheduler.policy, 1)
        if self.scheduler.policy in ("temporal", "servers"):
            assert len(self.busy()) <= 1
        held: dict[str, set[int]] = {name.partition("/")[0]: set() for name in self.workers}
        seen: dict[str, set[int]] = {model: set() for model in held}
        for sequence in self.all:
            if sequence.phase is Phase.ENDED:
                assert not sequence.held
                assert sequence.batch is None
            held[sequence.model].update(sequence.held)
            assert len(sequence.state) == self.specs[sequence.model].state_rows * bool(sequence.rows)
            seen[sequence.model].update(sequence.held[sequence.faded :])
            passed = self.scheduler.lanes[sequence.model].passed(sequence.computed)
            assert sequence.faded == (passed if sequence.rows else 0)
            size = self.specs[sequence.model].row_tokens
            ahead = sequence.id in self.ahead(sequence.model)
            assert len(sequence.rows) <= -(-(len(sequence.tokens) + ahead) // size), "a row in vain"
        usage = self.ledger.usage()
        assert {model: use.rows for model, use in usage.items()} == {m: len(rows) for m, rows in held.items()}
        for model, use in usage.items():
            spec = self.specs[model]
            faded = len(spec.windowed.columns) * len(held[model] - seen[model]) if spec.windowed else 0
            assert use.blocks == len(held[model]) * spec.blocks - faded
        for lane in self.scheduler.lanes.values():
            for flight in lane.all_flights:
                worker = self._worker(flight)
                for sequence in flight.sequences:
                    told = worker.sequences.get(sequence.id, [])
                    told = told + worker.states.get(sequence.id, []) if told else told
                    assert set(told) <= set(sequence.held), "a row that may still be written was given back"
            for flight in lane.all_flights:
                suspects = [sequence for sequence in flight.sequences if sequence.suspect]
                assert not suspects or len(flight.sequences) == 1, "a suspect in company"
                assert not suspects or len(lane.all_flights) == 1, "another batch beside a suspect"
            assert set(lane.suspects) == {s.id for s in lane.sequences() if s.suspect}
            self._check_queue(list(lane.waiting.in_order()))
        for sequence in self.all:
            sent = self.emitted.get(sequence.id, [])
            assert sent == sequence.tokens[sequence.prompt_tokens :], "a token sent again, or skipped"
        written = [w.blocks_of_batch() for w in self.workers.values() if w.busy is not None]
        assert sum(map(len, written)) == len(set().union(*written)), "two batches write one block"
        for name, lane in self.scheduler.lanes.items():
            assert lane.admitted == sum(bool(s.rows) for s in self.all if s.model == name)
            assert lane.admitted <= self.specs[name].max_running
            promised = [max(0, s.charge - len(s.rows)) for s in self.all if s.model == name and s.rows]
            assert lane.promised == sum(promised)
            assert lane.blocked == "" or lane.waiting
