"""What one model keeps on the device between batches: its row table, and each sequence's list of rows.

Both only grow: new rows travel once with their head blocks, and a sequence that grows costs one id.
"""

from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from muxd.kernels import ops
from muxd.kernels.paged_pool import PagedPool
from muxd.messages import NewRows
from muxd.models.spec import ModelSpec
from muxd.worker.cuda_upload import int32, upload
from muxd.worker.rows import KnownRows
from muxd.worker.sequence import Sequence

_LINES = 256  # sequences, where nobody has said how many; doubled when they do not suffice


class RowLists:
    """``rows`` int32 [lines, width]: the row ids of each sequence, one line each. ``rest`` waits until
    nothing runs that reads or writes them: also batches that this one does not follow."""

    def __init__(
        self, width: int, device: torch.device, lines: int = _LINES, rest: Callable[[], None] = lambda: None
    ):
        self._rest = rest
        self.rows = torch.zeros((lines, width), dtype=torch.int32, device=device)
        self._free = list(range(lines - 1, -1, -1))

    def place(self, sequences: Items[Sequence]) -> None:
        """Give each sequence a line and send the rows its line lacks. ``rows`` may be another tensor then.

        Raises ValueError for a sequence that has more rows than a line holds.
        """
        lines: list[int] = []
        columns: list[int] = []
        ids: list[int] = []
        for sequence in sequences:
            if len(sequence.rows) > self.rows.shape[1]:
                raise ValueError(f"{len(sequence.rows)} rows of one sequence; {self.rows.shape[1]} fit")
            if sequence.line < 0:
                sequence.line, sequence.told = self._line(), 0
            new = sequence.rows[sequence.told :]
            if new:
                lines += [sequence.line] * len(new)
                columns += range(sequence.told, len(sequence.rows))
                ids += new
                sequence.told = len(sequence.rows)
        if ids:
            places = upload(self.rows.device, int32(lines), int32(columns), int32(ids))
            ops.grow_rows(self.rows, *places)

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
        self.pool = PagedPool.over(memory, block_bytes, table, spec.kv_heads, spec.head_dim, dtype)
        self.known = KnownRows(max_rows, spec.blocks_per_row, self.pool.blocks.shape[0])
        self.lists = RowLists(width, memory.device, lines or _LINES, rest)

    def learn(self, new: NewRows) -> None:
        """See ``muxd.worker.step.Step.learn``."""
        if (told := self.known.learn(new)) is not None:
            ops.learn_rows(self.pool.table, *upload(self.pool.table.device, *told))
