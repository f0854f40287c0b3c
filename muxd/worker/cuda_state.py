"""What one model keeps on the device between batches: its row table, and each sequence's list of rows.

Both only grow: new rows travel once with their head blocks, and a sequence that grows costs one id. What a
decode step brings of either goes with the step's own inputs and is written by it; a prefill sends it before.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_states import PagedStates
from muxd.messages import NewRows
from muxd.models.spec import ModelSpec
from muxd.models.state_layout import StateLayout, state_layout, state_rows
from muxd.worker.cuda_upload import int32, upload
from muxd.worker.rows import Ids, KnownRows
from muxd.worker.sequence import Sequence

_LINES = 256  # sequences, where nobody has said how many; doubled when they do not suffice
_NEW_BYTES = 16 << 10  # of head blocks that go with a step; they travel with every step, used or not


class RowLists:
    """``rows`` int32 [lines, width]: the row ids of each sequence, one line each; ``states``
    [lines, state_width]: those of its state, where its model keeps one. ``rest`` waits until nothing runs
    that reads or writes them: also batches that this one does not follow."""

    def __init__(
        self,
        width: int,
        device: torch.device,
        lines: int = _LINES,
        state_width: int = 0,
        rest: Callable[[], None] = lambda: None,
    ):
        self._rest = rest
        self.rows = torch.zeros((lines, width), dtype=torch.int32, device=device)
        self.states = torch.zeros((lines, state_width), dtype=torch.int32, device=device)
        self._free = list(range(lines - 1, -1, -1))

    def place(self, sequences: Items[Sequence]) -> None:
        """Give each sequence a line and send the rows its line lacks. ``rows`` may be another tensor then.

        Raises ValueError for a sequence that has more rows than a line holds, or not as many as its state
        needs.
        """
        lines: list[int] = []
        columns: list[int] = []
        ids: list[int] = []
        begun: list[Sequence] = []
        for sequence in sequences:
            if len(sequence.rows) > self.rows.shape[1]:
                raise ValueError(f"{len(sequence.rows)} rows of one sequence; {self.rows.shape[1]} fit")
            if sequence.line < 0:
                sequence.line, sequence.told = self._line(), 0
                begun.append(sequence)
            new = sequence.rows[sequence.told :]
            if new:
                lines += [sequence.line] * len(new)
                columns += range(sequence.told, len(sequence.rows))
                ids += new
                sequence.told = len(sequence.rows)
        if ids:
            places = upload(self.rows.device, int32(lines), int32(columns), int32(ids))
            ops.grow_rows(self.rows, *places)
        self._place_states(begun)

    def _place_states(self, begun: list[Sequence]) -> None:
        """They stay as they are for the sequence's life."""
        width = self.states.shape[1]
        for sequence in begun:
            if len(sequence.state) != width:
                raise ValueError(f"{len(sequence.state)} rows of a sequence's state; it needs {width}")
        if width and begun:
            lines = np.repeat(int32([sequence.line for sequence in begun]), width)
            ids = int32([row for sequence in begun for row in sequence.state])
            columns = np.tile(np.arange(width, dtype=np.int32), len(begun))
            ops.grow_rows(self.states, *upload(self.states.device, lines, columns, ids))

    def grown(self, sequences: Items[Sequence], size: int) -> tuple[Ids, Ids]:
        """As ``place``, but where a sequence lacks one row alone that is for ``ops.take_rows`` to write: its
        column and the row, int32 [size] each, column -1 where there is none."""
        columns, ids = np.full(size, -1, dtype=np.int32), np.zeros(size, dtype=np.int32)
        others = []
        for i, sequence in enumerate(sequences):
            lacks = len(sequence.rows) - sequence.told
            if sequence.line >= 0 and lacks == 1 and sequence.told < self.rows.shape[1]:
                columns[i], ids[i] = sequence.told, sequence.rows[-1]
                sequence.told += 1
            elif sequence.line < 0 or lacks:
                others.append(sequence)
        self.place(others)
        return columns, ids

    def release(self, sequence: Sequence) -> None:
        """Its line goes to another. What lies in it is never read beyond the new one's length."""
        if sequence.line >= 0:
            self._free.append(sequence.line)
            sequence.line = -1

    def _line(self) -> int:
        if not self._free:
            count = len(self.rows)
            self._rest()
            self.rows = torch.cat((self.rows, torch.zeros_like(self.rows)))
            self.states = torch.cat((self.states, torch.zeros_like(self.states)))
            self._rest()
            self._free = list(range(2 * count - 1, count - 1, -1))
        return self._free.pop()


class PagedState:
    """One model's view of a pool. ``memory``: uint8 [bytes] on the device; ``width``: rows of a sequence;
    ``lines``: sequences that there are at once, 0: nobody knows; ``rest``: see ``RowLists``."""

    def __init__(
        self,
        spec: ModelSpec,
        memory: Tensor,
        block_bytes: int,
        max_rows: int,
        width: int,
        dtype: torch.dtype,
        *,
        lines: int = 0,
        rest: Callable[[], None] = lambda: None,
    ):
        spec.tokens_per_row(block_bytes, dtype.itemsize)  # refuses blocks that hold no token
        table = torch.zeros((max_rows, spec.blocks_per_row), dtype=torch.int32, device=memory.device)
        self.pool = PagedPool.over(memory, block_bytes, table, spec.row_layout, dtype)
        self.known = KnownRows(max_rows, spec.blocks_per_row, self.pool.blocks.shape[0])
        self.states: tuple[PagedStates, StateLayout] | None = None
        if (delta := spec.delta) is not None:
            own = PagedStates.over(self.pool, delta.key_dim, delta.value_dim)
            self.states = own, state_layout(delta, block_bytes)
        kept = state_rows(spec, block_bytes)
        self.lists = RowLists(width, memory.device, lines or _LINES, kept, rest)
        self._new: list[tuple[Ids, Ids]] = []  # learnt, and not in the table yet

    def copy(self, rows: list[int], into: list[int]) -> None:
        """See ``muxd.worker.step.Step.copy``."""
        self.send()
        table = self.pool.table
        floats = self.pool.blocks.view(torch.float32)  # no type that torch cannot index
        source, target = upload(table.device, int32(rows), int32(into))
        floats[table[target].flatten().long()] = floats[table[source].flatten().long()]

    def learn(self, new: NewRows) -> None:
        """See ``muxd.worker.step.Step.learn``. The table has them after ``send``, or with the next step."""
        if (told := self.known.learn(new)) is not None:
            if any(np.isin(told[0], ids).any() for ids, _ in self._new):
                self.send()  # one launch writes a row once
            self._new.append(told)

    def send(self) -> None:
        """All that was learnt into the table, by a launch of its own."""
        if self._new:
            ids, blocks = (np.concatenate(parts) for parts in zip(*self._new, strict=True))
            ops.learn_rows(self.pool.table, *upload(self.pool.table.device, ids, blocks))
            self._new = []

    def learnt(self, size: int) -> tuple[Ids, Ids]:
        """For ``ops.learn_rows`` in a step of ``size`` sequences: see ``no_rows``. More than fit are sent."""
        ids, blocks = no_rows(self.pool.table.shape[1], size)
        if sum(len(new) for new, _ in self._new) > len(ids):
            self.send()
        at = 0
        for new, own in self._new:
            ids[at : at + len(new)], blocks[at : at + len(new)] = new, own
            at += len(new)
        self._new = []
        return ids, blocks

    def of(self, lines: Tensor) -> tuple[PagedStates, StateLayout, Tensor] | None:
        """States, and the state rows [b, width] of the sequences that have these ``lines``; None: the model
        keeps none."""
        return None if self.states is None else (*self.states, self.lists.states.index_select(0, lines))


def no_rows(per_row: int, size: int) -> tuple[Ids, Ids]:
    """Room for rows learnt in a step of ``size`` sequences: ids int32 [k], -1, and their ``per_row`` head
    blocks. A sequence seldom gets more than one row at once."""
    room = max(1, min(size, _NEW_BYTES // max(1, 4 * per_row)))
    return np.full(room, -1, dtype=np.int32), np.zeros((room, per_row), dtype=np.int32)
