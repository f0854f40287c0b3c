"""A worker that only keeps the books, and checks what a real one relies on.

Every row it is told to use is its model's, positions follow each other, one batch at a time.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from muxd.messages import Chunk, Decode, Prefill


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


@dataclass
class Worker:
    """What the process at the other end of the link would know; of one that computes both phases at once
    there are two, one for the batches of each, that know the same."""

    spec: Spec
    rows: dict[int, tuple[int, ...]] = field(default_factory=dict)  # row id -> blocks
    sequences: dict[int, list[int]] = field(default_factory=dict)  # seq -> row ids
    position: dict[int, int] = field(default_factory=dict)
    shared: dict[int, int] = field(default_factory=dict)  # seq -> rows it only reads
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

    def _begin(self, chunk: Chunk, rows: list[int]) -> None:
        """It may start behind rows that this worker has filled for the very same tokens and adapter."""
        self.adapter[chunk.seq] = chunk.adapter
        known = tuple(np.frombuffer(chunk.known, "<i4").tolist())
        assert len(known) == chunk.start
        assert chunk.start % self.spec.row_tokens == 0
        self.sequences[chunk.seq], self.position[chunk.seq] = rows, chunk.start
        self.shared[chunk.seq] = chunk.start // self.spec.row_tokens
        for i in range(self.shared[chunk.seq]):
            for block in self.rows[rows[i]]:
                assert self.pool[block] == self._written(chunk.adapter, known, i), (
                    "not the row of this prefix"
                )
        self.history[chunk.seq] = list(known)

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
            self.shared[one.seq] = (len(tokens) - 1) // self.spec.row_tokens
            for i in range(self.shared[one.seq]):
                for block in self.rows[self.sequences[one.seq][i]]:
                    assert self.pool[block] == self._written(one.adapter, tokens, i), (
                        "not the row that was prefilled"
                    )
        assert len(set(command.seqs)) == len(command.seqs)
        for seq, row in command.grown:
            self.sequences[seq].append(row)
        for seq in command.seqs:
            self._advance(seq, 1)

    def _written(self, adapter: int, tokens: list[int] | tuple[int, ...], row: int) -> tuple[str, ...]:
        return (self.spec.name, str(adapter), *map(str, tokens[: (row + 1) * self.spec.row_tokens]))

    def done(self, token: int) -> None:
        """The running batch sampled ``token`` everywhere."""
        assert self.busy is not None
        for seq in self.sampling():
            self.history[seq].append(token)
        self.busy = None
        if self.behind is not None:
            behind, self.behind = self.behind, None
            self._start(behind)

    def _advance(self, seq: int, tokens: int) -> None:
        assert tokens > 0
        before = self.position[seq]
        self.position[seq] += tokens
        assert self.position[seq] <= len(self.sequences[seq]) * self.spec.row_tokens, "token without a row"
        for row in range(before // self.spec.row_tokens, self.position[seq] // self.spec.row_tokens):
            for block in self.rows[self.sequences[seq][row]]:
                self.pool[block] = self._written(self.adapter[seq], self.history[seq], row)

    def sampling(self) -> list[int]:
        """Sequences that get a token in the reply to the running command."""
        assert self.busy is not None
        if isinstance(self.busy, Prefill):
            return [chunk.seq for chunk in self.busy.chunks if chunk.last and not chunk.pooling]
        return self.busy.seqs

    def blocks_of_batch(self) -> set[int]:
        """Head blocks the running batch may write."""
        assert self.busy is not None
        command = self.busy
        seqs = [c.seq for c in command.chunks] if isinstance(command, Prefill) else command.seqs
        own = {seq: self.sequences[seq][self.shared[seq] :] for seq in seqs}
        return {block for rows in own.values() for row in rows for block in self.rows[row]}
