"""A worker's loop with batches of both phases under way: they end in any order, and each is told of at once.

The daemon's side and the device are played: one prefill, and two steps, may be under way; which of the first
ones of each phase is done next is drawn. The real runner's part is in ``test_split_ahead.py``.
"""

from collections import deque
from collections.abc import Callable, Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples

from muxd.link.exits import Exit
from muxd.messages import (
    BatchDone,
    BatchFailed,
    Chunk,
    Decode,
    FromWorker,
    MapPool,
    NewRows,
    Prefill,
    Sampling,
    Shutdown,
    ToWorker,
    Unmapped,
    UnmapPool,
)
from muxd.worker.loop import serve
from muxd.worker.pace import Pace

_MOST = {True: 1, False: 2}  # batches of a phase that a worker has at once, by whether it prefills


class Work:
    """A batch on the device. ``broken``: what it does when it is asked: "ready" or "finish" raises."""

    def __init__(self, device: "Device", number: int, prefill: bool, broken: str):
        self.number, self.prefill, self.done, self._broken = number, prefill, False, broken
        self._device = device

    def ready(self) -> bool:
        if self._broken == "ready":
            raise RuntimeError("an illegal memory access was encountered")
        return self.done

    def finish(self, after: float = 0.0) -> BatchDone:
        device = self._device
        assert self is device.under_way[self.prefill][0], "told of before the one in front of it"
        assert self.done or device.closing, "waited for, and meanwhile nobody hears the daemon"
        if self._broken == "finish":
            raise RuntimeError("out of memory")
        device.under_way[self.prefill].popleft()
        return BatchDone(self.number, [], 0.25)


class Device:
    """The runner, and the daemon at the other end of the link. ``script``: whether each batch prefills, or
    None for memory that comes; what it does not say is drawn."""

    ahead = True

    def __init__(self, script: list[bool | None], seed: int, broken: dict[int, str] | None = None):
        self._script, self._draw, self._broken = deque(enumerate(script)), Random(seed), broken or {}
        self.under_way: dict[bool, deque[Work]] = {True: deque(), False: deque()}
        self._sent: dict[bool, list[int]] = {True: [], False: []}  # and not answered
        self.begun: list[int] = []
        self.told: list[FromWorker] = []
        self.closing = False
        self.together = self.overtaken = self.between = 0

    # ---- the runner -------------------------------------------------------------------------------

    def begin(self, command: Prefill | Decode) -> Work:
        prefill = isinstance(command, Prefill)
        self.begun.append(command.batch)
        for _ in range(self._draw.randrange(4) if prefill else 0):
            if (steps := self.under_way[False]) and self._draw.random() < 0.5:
                steps[0].done = True
            before = len(self.begun)
            self._between()
            self.between += len(self.begun) > before
        work = Work(self, command.batch, prefill, self._broken.get(command.batch, ""))
        self.under_way[prefill].append(work)
        self.together += all(self.under_way.values())
        return work

    def weave(self, between: Callable[[], None]) -> None:
        self._between = between

    # ---- memory -----------------------------------------------------------------------------------

    def handle(self, command: MapPool | UnmapPool) -> Unmapped | None:
        assert not any(self.under_way.values()), "memory came while something ran"
        return Unmapped("m", command.offset)

    # ---- the link ---------------------------------------------------------------------------------

    def receive(self) -> ToWorker:
        assert not any(self.under_way.values()), "nobody would hear of what is under way"
        command = self._next()
        assert command is not None, "both sides would wait for ever"
        return command

    def poll(self) -> ToWorker | None:
        return self._next() if self._draw.random() < 0.5 else None

    def wait(self, seconds: float) -> None:
        """Time passes until a batch is done."""
        firsts = [queue[0] for queue in self.under_way.values() if queue]
        assert not any(work.done for work in firsts), "done, and not told of"
        self._draw.choice(firsts).done = True

    def send(self, message: FromWorker) -> None:
        self.told.append(message)
        if isinstance(message, BatchDone):
            phase = next(phase for phase, sent in self._sent.items() if message.batch in sent)
            assert self._sent[phase].pop(0) == message.batch
            self.overtaken += any(other and other[0] < message.batch for other in self._sent.values())

    def _next(self) -> ToWorker | None:
        if not self._script:
            self.closing = True
            return Shutdown()
        number, kind = self._script[0]
        if kind is None:
            self._script.popleft()
            self.closing = True  # until what runs has come to an end, which may take as long as it takes
            return UnmapPool(number)
        self.closing = False
        if len(self._sent[kind]) == _MOST[kind]:
            return None
        self._script.popleft()
        self._sent[kind].append(number)
        if not kind:
            return Decode(number, 50, NewRows(), [1], [], [])
        chunk = Chunk(2, 0, bytes(4 * 7), b"", True, Sampling(), 7)
        return Prefill(number, 50, NewRows(), [chunk], [])


@settings(max_examples=examples(300))
@given(st.lists(st.sampled_from([True, False, False, None]), max_size=40), st.integers(0, 2**32))
def test_batches_begin_in_the_order_of_their_commands_and_end_as_the_device_has_them(
    script: list[bool | None], seed: int
) -> None:
    device = Device(script, seed)
    assert serve(device, device, device) is Exit.OK
    batches = [number for number, kind in enumerate(script) if kind is not None]
    assert device.begun == batches
    done = [message.batch for message in device.told if isinstance(message, BatchDone)]
    assert sorted(done) == batches
    for phase in (True, False):
        own = [number for number in done if script[number] is phase]
        assert own == sorted(own)
    assert sum(isinstance(message, Unmapped) for message in device.told) == script.count(None)


def test_a_step_does_not_wait_for_the_prefill_beside_it_nor_a_prefill_for_steps() -> None:
    device = Device([True, False, False] * 30, seed=5)
    assert serve(device, device, device) is Exit.OK
    assert device.together > 20
    assert device.overtaken > 10
    assert device.between > 10, "steps begin while a prefill is asked for"


@pytest.mark.parametrize("broken", ["ready", "finish"])
@pytest.mark.parametrize("number", [0, 1])
def test_a_batch_of_either_phase_that_fails_ends_the_worker_by_its_name(broken: str, number: int) -> None:
    device = Device([True, False], 3, {number: broken})
    assert serve(device, device, device) is Exit.FAILED
    last = device.told[-1]
    assert isinstance(last, BatchFailed)
    assert last.batch == number


# ---- how long it may sleep ----------------------------------------------------------------------------


def test_nothing_is_expected_of_what_was_never_seen() -> None:
    assert Pace().expected(500) == 0.0


@given(
    st.lists(st.tuples(st.integers(1, 2000), st.floats(1e-5, 10.0)), min_size=1, max_size=50),
    st.integers(1, 2000),
)
def test_no_more_is_expected_than_the_last_batch_took_for_each_token(
    seen: list[tuple[int, float]], size: int
) -> None:
    pace = Pace()
    for tokens, seconds in seen:
        pace.learn(tokens, seconds)
    tokens, seconds = seen[-1]
    assert 0 < pace.expected(size) <= seconds / tokens * size * (1 + 1e-9)


def test_a_device_that_has_become_slower_is_believed_in_the_end() -> None:
    pace = Pace()
    pace.learn(1, 0.01)
    for _ in range(15):
        pace.learn(1, 0.02)
    assert pace.expected(1) == pytest.approx(0.02)


class Rank:
    """Runner and link of a rank that is not the first: steps come before it has looked at its prefill."""

    ahead = True

    def __init__(self, commands: list[ToWorker]):
        self._commands, self.happened = deque(commands), list[str]()

    def begin(self, command: Prefill | Decode) -> "Computed":
        self.happened.append(f"begun {command.batch}")
        return Computed(self, command.batch)

    def weave(self, between: Callable[[], None]) -> None:
        """Ranks are not."""

    def handle(self, command: MapPool | UnmapPool) -> None:
        raise AssertionError

    def receive(self) -> ToWorker:
        return self._commands.popleft()

    def poll(self) -> ToWorker | None:
        return self._commands.popleft() if self._commands else None

    def wait(self, seconds: float) -> None:
        raise AssertionError("there is always a command")

    def send(self, message: FromWorker) -> None:
        assert isinstance(message, BatchDone)
        self.happened.append(f"told {message.batch}")


class Computed:
    def __init__(self, rank: Rank, number: int):
        self._rank, self.number = rank, number

    def ready(self) -> bool:
        return False

    def finish(self, after: float = 0.0) -> BatchDone:
        return BatchDone(self.number, [], 0.25)


def prefill(batch: int, seq: int, forget: Iterable[int] = ()) -> Prefill:
    chunk = Chunk(seq, 0, b"\0" * 4, b"", True, Sampling(), 1)
    return Prefill(batch, 100, NewRows(), [chunk], list(forget))


def step(batch: int, *seqs: int, forget: Iterable[int] = ()) -> Decode:
    return Decode(batch, 100, NewRows(), list(seqs), [], list(forget))


def test_a_step_waits_for_the_prefill_of_its_own_sequences_and_for_no_other() -> None:
    rank = Rank([prefill(1, 7), step(2, 5), step(3, 5, 7), Shutdown()])
    assert serve(rank, rank, rank) is Exit.OK
    assert rank.happened == ["begun 1", "begun 2", "told 1", "begun 3", "told 2", "told 3"]


@pytest.mark.parametrize("then", ["prefill", "step"])
def test_who_is_to_be_forgotten_is_in_no_batch_any_more(then: str) -> None:
    """What it had on the device goes to others."""
    last = prefill(3, 9, forget=[5]) if then == "prefill" else step(3, 6, forget=[5])
    rank = Rank([step(1, 5, 6), step(2, 6), last, Shutdown()])
    assert serve(rank, rank, rank) is Exit.OK
    assert rank.happened[:4] == ["begun 1", "begun 2", "told 1", "begun 3"]
