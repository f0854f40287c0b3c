"""A decode step that begins before the one in front of it is read: the same tokens, and nothing written late.

Over tensors of the CPU, by the kernels' references; with `-m gpu` over those of a GPU.
"""

import itertools
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.direct_runner import GREEDY, DirectRunner
from support.examples import examples
from support.tiny_models import gemma3, llama, qwen3_5, words

from muxd.link.exits import Exit
from muxd.messages import (
    BatchDone,
    BatchFailed,
    Decode,
    FromWorker,
    MapPool,
    NewRows,
    Sampling,
    Shutdown,
    ToWorker,
    Unmapped,
    UnmapPool,
)
from muxd.worker.loop import serve
from muxd.worker.runner import Batch

SAMPLINGS = [
    GREEDY,
    Sampling(temperature=0.8, seed=3),
    Sampling(temperature=0.9, top_p=0.9, seed=11),
    Sampling(temperature=0.0, repetition_penalty=1.4),
    Sampling(temperature=0.7, presence_penalty=0.8, frequency_penalty=0.5, seed=6),
    Sampling(temperature=0.0, min_tokens=5, banned_first=(2, 7, 9)),  # after 5 tokens a plain argmax
    Sampling(temperature=0.0, logprobs=2),
    Sampling(temperature=1.0, seed=9, min_tokens=9, banned_first=tuple(range(2, 40))),
]


@pytest.fixture(scope="module", params=[llama, gemma3, qwen3_5])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    request.param(folder)
    return folder


def started(
    folder: Path, samplings: list[Sampling], *, device: str = "cpu", paged: bool = True
) -> DirectRunner:
    direct = DirectRunner(folder, block_bytes=4096, device=device, paged=paged, capture=False)
    for i, sampling in enumerate(samplings):
        direct.prefill([(i, 0, words(5 + 9 * i, seed=i), True)], sampling)
    return direct


def in_lockstep(direct: DirectRunner, batches: list[list[int]]) -> list[BatchDone]:
    """Every step read before the next begins; times left out."""
    return [_timeless(direct.decode_step(seqs)) for seqs in batches]


def ahead(
    direct: DirectRunner, batches: list[list[int]], masks: Iterable[int] = itertools.repeat(0)
) -> list[BatchDone]:
    """Every step begun before the one in front of it is read, each on the parts of a GPU in its mask."""
    found, waiting = [], deque[Batch]()
    for seqs, mask in zip(batches, masks, strict=False):
        waiting.append(direct.begin(seqs, parts=mask))
        if len(waiting) == 2:
            found.append(_timeless(waiting.popleft().finish()))
    return [*found, *(_timeless(batch.finish()) for batch in waiting)]


def _timeless(done: BatchDone) -> BatchDone:
    return BatchDone(done.batch, done.tokens, 0.0, done.logprobs)


def test_all_kinds_of_sampling_give_the_tokens_of_the_lockstep_and_of_the_cpu(
    folder: Path, device: str
) -> None:
    batches = [list(range(len(SAMPLINGS)))] * 25
    wanted = in_lockstep(started(folder, SAMPLINGS, paged=False), batches)
    direct = started(folder, SAMPLINGS, device=device)
    found = ahead(direct, batches)
    assert [done.tokens for done in found] == [done.tokens for done in wanted]
    lockstep = in_lockstep(started(folder, SAMPLINGS, device=device), batches)
    assert [done.logprobs for done in found] == [done.logprobs for done in lockstep]


@pytest.mark.parametrize("which", range(len(SAMPLINGS)))
def test_each_kind_alone(folder: Path, device: str, which: int) -> None:
    """A plain argmax from the sixth token on is another graph: it is recorded between two steps."""
    batches = [[0, 1]] * 12
    samplings = [SAMPLINGS[which], GREEDY]
    wanted = in_lockstep(started(folder, samplings, paged=False), batches)
    found = ahead(started(folder, samplings, device=device), batches)
    assert [done.tokens for done in found] == [done.tokens for done in wanted]


@settings(max_examples=examples(15))
@given(st.lists(st.permutations(range(5)), min_size=3, max_size=12), st.data())
def test_sequences_that_leave_move_and_sit_out(
    tmp_path_factory: pytest.TempPathFactory, orders: list[list[int]], data: st.DataObject
) -> None:
    """Who steps when changes no token: places in the batch change, and with them the graph's size."""
    folder = tmp_path_factory.getbasetemp() / "drawn"
    if not folder.exists():
        folder.mkdir()
        llama(folder)
    batches = [order[: data.draw(st.integers(1, 5))] for order in orders]
    # Who sits a step out has its token read before it steps again.
    wanted = in_lockstep(started(folder, SAMPLINGS[:5], paged=False), batches)
    found = ahead(started(folder, SAMPLINGS[:5]), batches)
    assert [done.tokens for done in found] == [done.tokens for done in wanted]


def test_steps_on_other_parts_of_the_device_each_time_give_the_same_tokens(folder: Path, device: str) -> None:
    """On a GPU every mask is a green context with a stream and graphs of its own, one behind the other."""
    direct, moving = (started(folder, SAMPLINGS, device=device) for _ in range(2))
    batches = [list(range(2 + i % 7)) for i in range(24)]
    masks = itertools.cycle([0b1, 0b11, 0, 0b110, 0b1000, 0b11])
    found, wanted = ahead(moving, batches, masks), in_lockstep(direct, batches)
    assert [done.tokens for done in found] == [done.tokens for done in wanted]


def test_a_stop_that_is_seen_one_step_late_leaves_no_trace(folder: Path, device: str) -> None:
    """Sequence 1 ends with step n while n + 1 runs with it: the extra token is nobody's, its rows come back
    when n + 1 is done, and no later step writes them."""
    direct = started(folder, SAMPLINGS[:3], device=device)
    alone = started(folder, SAMPLINGS[:3], paged=False)
    n = direct.begin([0, 1, 2])
    behind = direct.begin([0, 1, 2])
    first = n.finish().tokens  # now 1 is seen to be over
    after = direct.begin([0, 2])
    second = behind.finish().tokens
    rows = direct._rows.pop(1)
    per_row, blocks = direct.spec.blocks_per_row, direct.pool.view(-1, 4096)
    own = [b for row in rows for b in direct._blocks[row * per_row : (row + 1) * per_row]]
    blocks[own] = 0xFF  # as another model may leave it
    third = after.finish().tokens
    last = [done.tokens for done in ahead(direct, [[0, 2]] * 6)]
    assert bool((blocks[own] == 0xFF).all())
    wanted = in_lockstep(alone, [[0, 1, 2]] * 2) + in_lockstep(alone, [[0, 2]] * 7)
    assert [first, second, third, *last] == [done.tokens for done in wanted]
    direct._free += rows
    again = direct.prefill([(7, 0, words(40), True)], forget=[1]).tokens
    assert again == alone.prefill([(7, 0, words(40), True)], forget=[1]).tokens


def test_a_token_that_nobody_has_is_refused(folder: Path) -> None:
    direct = started(folder, SAMPLINGS[:2])
    direct.begin([0, 1])
    direct.begin([0])
    with pytest.raises(ValueError, match="was not in the step before"):
        direct.begin([1])  # its token was overwritten unread


# ---- the loop -----------------------------------------------------------------------------------------


class Script:
    """The daemon's side of a link: ``answers`` follow the replies. Notes what happened, in order."""

    def __init__(self, opening: list[ToWorker], answers: list[list[ToWorker]]):
        self._ready, self._answers = deque(opening), deque(answers)
        self.replies: list[FromWorker] = []
        self.story: list[str] = []

    def receive(self) -> ToWorker:
        command = self.poll()
        assert command is not None, "the worker would wait for ever"
        return command

    def poll(self) -> ToWorker | None:
        if not self._ready:
            return None
        command = self._ready.popleft()
        match command:
            case Shutdown():
                self.story.append("stop")
            case Decode():
                self.story.append(f"take {command.batch}")
        return command

    def wait(self, seconds: float) -> None:
        raise AssertionError("what tensors of the CPU compute is done when it has begun")

    def handle(self, command: MapPool | UnmapPool) -> Unmapped | None:
        """As ``muxd.worker.growth.Growth``."""
        kind = "map" if isinstance(command, MapPool) else "unmap"
        self.story.append(f"{kind} {command.offset}")
        return None if kind == "map" else Unmapped("m", command.offset)

    def send(self, message: FromWorker) -> None:
        self.replies.append(message)
        assert isinstance(message, BatchDone | BatchFailed | Unmapped)
        self.story.append("unmapped" if isinstance(message, Unmapped) else f"told {message.batch}")
        self._ready += self._answers.popleft() if self._answers else []


def roomy(direct: DirectRunner) -> DirectRunner:
    """Every sequence has the rows for nine tokens more."""
    for seq, sequence in direct.runner._sequences.items():
        grown = direct._grow(seq, direct._lengths[seq] + 9)
        direct.runner._step.learn(direct._new(grown))
        sequence.rows += grown
    return direct


def step(batch: int, seqs: list[int]) -> Decode:
    return Decode(batch, 100, NewRows(), seqs, [], [])


def test_the_loop_begins_a_step_before_it_tells_of_the_one_in_front(folder: Path) -> None:
    direct = roomy(started(folder, SAMPLINGS[:3]))
    link = Script([step(11, [0, 1, 2]), step(12, [0, 1, 2])], [[step(13, [0, 2])], [], [Shutdown()]])
    assert serve(link, direct.runner, link) is Exit.OK
    assert link.story == ["take 11", "take 12", "told 11", "take 13", "told 12", "told 13", "stop"]
    alone = started(folder, SAMPLINGS[:3], paged=False)
    wanted = in_lockstep(alone, [[0, 1, 2], [0, 1, 2], [0, 2]])
    assert [reply.tokens for reply in link.replies] == [done.tokens for done in wanted]  # type: ignore[union-attr]


def test_the_loop_finishes_what_runs_before_another_kind_and_where_it_cannot_run_ahead(folder: Path) -> None:
    direct = roomy(started(folder, [GREEDY], paged=False))
    link = Script([step(11, [0]), step(12, [0]), Shutdown()], [])
    assert serve(link, direct.runner, link) is Exit.OK
    assert link.story == ["take 11", "told 11", "take 12", "told 12", "stop"]


def test_memory_comes_and_goes_only_when_nothing_runs(folder: Path) -> None:
    direct = roomy(started(folder, [GREEDY]))
    link = Script([step(11, [0]), MapPool(64, 64), step(12, [0]), UnmapPool(64), Shutdown()], [])
    assert serve(link, direct.runner, link) is Exit.OK
    told = ["take 11", "told 11", "map 64", "take 12", "told 12", "unmap 64", "unmapped", "stop"]
    assert link.story == told


def test_a_step_that_fails_ends_the_worker(folder: Path) -> None:
    direct = roomy(started(folder, [GREEDY]))
    link = Script([step(11, [0]), step(12, [99])], [])
    assert serve(link, direct.runner, link) is Exit.FAILED
    assert link.story[-1] == "told 12"
    assert isinstance(link.replies[-1], BatchFailed)
