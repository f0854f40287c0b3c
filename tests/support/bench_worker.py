"""A worker that only keeps the books, and checks what a real one relies on.

Every row it is told to use is its model's, positions follow each other, one batch at a time.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from muxd.messages import Chunk, Decode, Prefill
from muxd.pool.windowed import Windowed


@dataclass
class Spec:
    """A model of the test: ``blocks`` per row, T = ``row_tokens``."""

    name: str
    blocks: int = 2
    row_tokens: int = 4
    share: int = 50
    min_blocks: int = 0
    max_running: int = 8
    max_queue: int = 1000
    max_context: int = 10_000
    weight: float = 1.0
    prefix_cache: bool = True
    cap: int = 100
    split: bool = False  # a batch of each phase at once: by two workers,
    beside: bool = False  # or by one
    ttft_slo: float = 0.0
    whole: bool = False  # an encoder: no prompt is cut
    state_rows: int = 0  # of each sequence, beside those of its tokens
    windowed: Windowed | None = None


@dataclass
class Worker:
    """What the process at the other end of the link would know; of one that computes both phases at once
    there are two, one for the batches of each, that know the same."""

    spec: Spec
    rows: dict[int, tuple[int, ...]] = field(default_factory=dict)  # row id -> blocks
    sequences: dict[int, list[int]] = field(default_factory=dict)  # seq -> row ids
    position: dict[int, int] = field(default_factory=dict)
    began: dict[int, int] = field(default_factory=dict)  # seq -> its position before the running batch
    shared: dict[int, int] = field(default_factory=dict)  # seq -> rows it only reads
    states: dict[int, list[int]] = field(default_factory=dict)  # seq -> rows of its state
    copies: dict[int, list[int]] = field(
        default_factory=dict
    )  # seq -> rows into which its last chunk copies it
    adapter: dict[int, int] = field(default_factory=dict)  # seq -> its adapter
    history: dict[int, list[int]] = field(default_factory=dict)  # seq -> every token it was told or sampled
    pool: dict[int, tuple[str, ...]] = field(default_factory=dict)  # all models': block -> what is in it
    busy: Prefill | Decode | None = None
    behind: Decode | None = None  # what it has while ``busy`` still runs

    @property
    def number(self) -> int | None:
        """Of the running batch."""
        return None if self.busy is None else self.busy.batch

    def queue(self, command: Decode) -> None:
        assert isinstance(self.busy, Decode), "nothing to run ahead of"
        assert self.behind is None, "three batches at once on one worker"
        assert set(command.seqs) <= set(self.busy.seqs), "a token that nobody has"
        self.behind = command
        self._told(command)

    def receive(self, command: Prefill | Decode) -> None:
        self._told(command)
        self._start(command)

    def beside(self) -> "Worker":
        """Of the same process, for the other phase."""
        return replace(self, busy=None, behind=None)

    def _told(self, command: Prefill | Decode) -> None:
        """When the command is here, whatever still runs."""
        for seq in command.forget:
            self.sequences.pop(seq, None)
            self.position.pop(seq, None)
        ids = np.frombuffer(command.rows.ids, "<i4")
        blocks = np.frombuffer(command.rows.blocks, "<i4").reshape(len(ids), self.spec.blocks)
        for row, held in zip(ids.tolist(), blocks.tolist(), strict=True):
            self.rows[row] = tuple(held)

    def _start(self, command: Prefill | Decode) -> None:
        assert self.busy is None, "two batches at once on one worker"
        self.busy = command
        if isinstance(command, Prefill):
            self._prefill(command)
        else:
            self._decode(command)

    def _prefill(self, command: Prefill) -> None:
        assert command.chunks, "an empty prefill batch"
        for chunk in command.chunks:
            given = np.frombuffer(chunk.rows, "<i4").tolist()
            if chunk.first:
                self._begin(chunk, given)
            else:
                assert not given
                assert not chunk.known
            assert self.position[chunk.seq] == chunk.start
            assert not self.spec.whole or (chunk.last and not chunk.start), "a text that was cut"
            self.history[chunk.seq] += np.frombuffer(chunk.tokens, "<i4").tolist()
            self._advance(chunk.seq, len(chunk.tokens) // 4)
            copy = np.frombuffer(chunk.copy, "<i4").tolist()
            assert len(copy) == self.spec.state_rows * bool(chunk.mark)
            assert not chunk.mark or chunk.start < chunk.mark <= self.position[chunk.seq]
            self.copies[chunk.seq] = copy
            for block in (block for row in copy for block in self.rows[row]):
                self.pool[block] = self._state(chunk.seq, chunk.mark)

    def _begin(self, chunk: Chunk, rows: list[int]) -> None:
        """It may start behind rows that this worker has filled for the very same tokens and adapter."""
        self.adapter[chunk.seq] = chunk.adapter
        known = tuple(np.frombuffer(chunk.known, "<i4").tolist())
        assert len(known) == chunk.start
        assert chunk.start % self.spec.row_tokens == 0
        self.sequences[chunk.seq], self.position[chunk.seq] = rows, chunk.start
        self.shared[chunk.seq] = chunk.start // self.spec.row_tokens
        self._take_state(chunk.seq, chunk.state)
        origin = np.frombuffer(chunk.origin, "<i4").tolist()
        assert len(origin) == self.spec.state_rows * bool(chunk.start), "no state of the tokens before it"
        for row, own in zip(origin, self.states[chunk.seq], strict=False):
            for block, into in zip(self.rows[row], self.rows[own], strict=True):
                assert self.pool.get(block) == ("state", self.spec.name, *map(str, known)), "another's state"
                self.pool[into] = self.pool[block]
        self.history[chunk.seq] = list(known)
        self._check_seen(chunk.seq, "not the row of this prefix")

    def _decode(self, command: Decode) -> None:
        assert command.seqs
        for one in command.joined:
            assert self.spec.split
            assert not self.spec.beside
            assert one.seq in command.seqs
            assert one.seq not in self.sequences, "told twice"
            tokens = np.frombuffer(one.tokens, "<i4").tolist()
            self.adapter[one.seq] = one.adapter
            self.sequences[one.seq] = np.frombuffer(one.rows, "<i4").tolist()
            self.position[one.seq], self.history[one.seq] = len(tokens) - 1, tokens
            self._take_state(one.seq, one.state)
            self.shared[one.seq] = (len(tokens) - 1) // self.spec.row_tokens
            self._check_seen(one.seq, "not the row that was prefilled")
        assert len(set(command.seqs)) == len(command.seqs)
        for seq, row in command.grown:
            self.sequences[seq].append(row)
        for seq in command.seqs:
            self._advance(seq, 1)

    def _take_state(self, seq: int, told: bytes) -> None:
        self.states[seq] = np.frombuffer(told, "<i4").tolist()
        assert len(self.states[seq]) == self.spec.state_rows
        assert not set(self.states[seq]) & set(self.sequences[seq])

    def _fed(self, seq: int, before: int) -> None:
        """Tokens from ``before`` on go through its state, which has had those before and no others."""
        for row in self.states[seq]:
            for block in self.rows[row]:
                assert not before or self.pool.get(block) == self._state(seq, before), "not its state"
                self.pool[block] = self._state(seq, self.position[seq])

    def _state(self, seq: int, tokens: int) -> tuple[str, ...]:
        return ("state", self.spec.name, *map(str, self.history[seq][:tokens]))

    def _seen(self, row: int, position: int) -> set[int]:
        """Columns of a sequence's row that the token at ``position`` sees, and those after it."""
        columns, windowed = set(range(self.spec.blocks)), self.spec.windowed
        if windowed is not None and (row + 1) * self.spec.row_tokens - 1 <= position - windowed.tokens:
            columns -= set(windowed.columns)
        return columns

    def _check_seen(self, seq: int, fault: str, position: int | None = None) -> None:
        """Of its full rows everything that its next token, or the one at ``position``, sees is what they
        should hold."""
        position = self.position[seq] if position is None else position
        for i in range(position // self.spec.row_tokens):
            blocks, wanted = self.rows[self.sequences[seq][i]], None
            for column in self._seen(i, position):
                wanted = wanted or self._written(self.adapter[seq], self.history[seq], i)
                assert self.pool.get(blocks[column]) == wanted, fault

    def _written(self, adapter: int, tokens: list[int] | tuple[int, ...], row: int) -> tuple[str, ...]:
        return (self.spec.name, str(adapter), *map(str, tokens[: (row + 1) * self.spec.row_tokens]))

    def done(self, token: int) -> None:
        """The running batch sampled ``token`` everywhere."""
        assert self.busy is not None
        if self.spec.windowed is not None:
            for seq in self.computing():
                self._check_seen(seq, "a row went that a running batch sees", self.began[seq])
        for seq in self.sampling():
            self.history[seq].append(token)
        self.busy = None
        if self.behind is not None:
            behind, self.behind = self.behind, None
            self._start(behind)

    def _advance(self, seq: int, tokens: int) -> None:
        assert tokens > 0
        before = self.began[seq] = self.position[seq]
        if self.spec.windowed is not None:
            self._check_seen(seq, "a row that is still seen is gone")
        self.position[seq] += tokens
        assert self.position[seq] <= len(self.sequences[seq]) * self.spec.row_tokens, "token without a row"
        self._fed(seq, before)
        for row in range(before // self.spec.row_tokens, self.position[seq] // self.spec.row_tokens):
            for block in self.rows[self.sequences[seq][row]]:
                self.pool[block] = self._written(self.adapter[seq], self.history[seq], row)

    def sampling(self) -> list[int]:
        """Sequences that get a token in the reply to the running command."""
        assert self.busy is not None
        if isinstance(self.busy, Prefill):
            return [chunk.seq for chunk in self.busy.chunks if chunk.last and not chunk.pooling]
        return self.busy.seqs

    def computing(self) -> list[int]:
        """Sequences in the running batch."""
        assert self.busy is not None
        command = self.busy
        return [c.seq for c in command.chunks] if isinstance(command, Prefill) else command.seqs

    def blocks_of_batch(self) -> set[int]:
        """Head blocks the running batch may write."""
        seqs = self.computing()
        written = {
            self.rows[row][column]
            for seq in seqs
            for i, row in enumerate(self.sequences[seq])
            if i >= self.shared[seq]
            for column in self._seen(i, self.began[seq])
        }
        states = [*(self.states[seq] for seq in seqs)]
        if isinstance(self.busy, Prefill):
            states += [self.copies[seq] for seq in seqs]
        return written | {block for rows in states for row in rows for block in self.rows[row]}
