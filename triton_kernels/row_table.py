"""Growing the device's own tables: new rows' head blocks, and new rows of sequences; a step's lists of rows.

Only what is new travels: 4 bytes per head block once, when a row is first named. Everything after that is by
row id. Tables are appended to, never rebuilt, so captured graphs keep reading them.
"""

from torch import Tensor


def learn_rows(table: Tensor, ids: Tensor, blocks: Tensor) -> None:
    """table[ids] = blocks. table int32 [max_rows, w]; ids int32 [k], -1 is padding; blocks int32 [k, w]."""
    real = ids >= 0
    table[ids[real].long()] = blocks[real]


def grow_rows(rows: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> None:
    """rows[lines, columns] = ids. rows int32 [b, width]; the others int32 [k], line -1 is padding."""
    real = lines >= 0
    rows[lines[real].long(), columns[real].long()] = ids[real]


def take_rows(lists: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> Tensor:
    """lists[lines], int32 [b, width], each with the row it has just got: lists[lines, columns] = ids, both
    here and in ``lists``. The others int32 [b]; column -1: none. A line of padding is any line, and is not
    read.
    """
    grow_rows(lists, lines.where(columns >= 0, -1), columns, ids)
    return lists.index_select(0, lines)
