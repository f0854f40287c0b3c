# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
# mypy: disable-error-code="import-untyped,import-not-found"
"""Triton kernels of ``row_table``: scatters with padding, of a fixed shape and without a host sync.

torch's indexing does the same only when nothing is padding: a boolean mask makes it wait for the device.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from muxd.kernels.launch import Call, ceil_div, power_of_two


@triton.jit(do_not_specialize=["width"])
def _learn(table, ids, blocks, width, table_stride, blocks_stride, SIZE: tl.constexpr):
    i = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    line = tl.program_id(0).to(tl.int64)
    row = tl.load(ids + line).to(tl.int64)
    real = (i < width) & (row >= 0)
    found = tl.load(blocks + line * blocks_stride + i, mask=real, other=0)
    tl.store(table + row * table_stride + i, found, mask=real)


@triton.jit(do_not_specialize=["n", "rows_stride"])
def _grow(rows, lines, columns, ids, n, rows_stride, SIZE: tl.constexpr):
    i = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    line = tl.load(lines + i, mask=i < n, other=-1).to(tl.int64)
    real = line >= 0
    column = tl.load(columns + i, mask=real, other=0)
    tl.store(rows + line * rows_stride + column, tl.load(ids + i, mask=real, other=0), mask=real)


@triton.jit(do_not_specialize=["width", "lists_stride"])
def _take(lists, lines, columns, ids, rows, width, lists_stride, SIZE: tl.constexpr):
    at = tl.program_id(0)
    i = tl.program_id(1) * SIZE + tl.arange(0, SIZE)
    own = lists + tl.load(lines + at).to(tl.int64) * lists_stride + i
    new = (i == tl.load(columns + at)) & (i < width)
    row = tl.where(new, tl.load(ids + at), tl.load(own, mask=i < width, other=0))
    tl.store(rows + at.to(tl.int64) * width + i, row, mask=i < width)
    tl.store(own, row, mask=new)


def learn_rows_calls(table: Tensor, ids: Tensor, blocks: Tensor) -> list[Call]:
    """The launch; arguments as of ``row_table.learn_rows``."""
    count, width = blocks.shape
    size = min(1024, power_of_two(width))
    arguments = (table, ids, blocks, width, table.stride(0), blocks.stride(0))
    return [Call(_learn, (count, ceil_div(width, size)), arguments, {"SIZE": size, "num_warps": 4})]


def grow_rows_calls(rows: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> list[Call]:
    """The launch; arguments as of ``row_table.grow_rows``."""
    n, size = lines.shape[0], 256
    arguments = (rows, lines, columns, ids, n, rows.stride(0))
    return [Call(_grow, (ceil_div(n, size),), arguments, {"SIZE": size, "num_warps": 4})]


def learn_rows(table: Tensor, ids: Tensor, blocks: Tensor) -> None:
    """As ``row_table.learn_rows``."""
    for call in learn_rows_calls(table, ids, blocks):
        call.run()


def grow_rows(rows: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> None:
    """As ``row_table.grow_rows``."""
    for call in grow_rows_calls(rows, lines, columns, ids):
        call.run()


def take_rows_calls(lists: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> tuple[Tensor, list[Call]]:
    """The rows and the launch; arguments as of ``row_table.take_rows``."""
    batch, width = lines.shape[0], lists.shape[1]
    size = min(1024, power_of_two(width))
    rows = torch.empty(batch, width, dtype=torch.int32, device=lists.device)
    arguments = (lists, lines, columns, ids, rows, width, lists.stride(0))
    return rows, [Call(_take, (batch, ceil_div(width, size)), arguments, {"SIZE": size, "num_warps": 4})]


def take_rows(lists: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> Tensor:
    """As ``row_table.take_rows``."""
    rows, calls = take_rows_calls(lists, lines, columns, ids)
    for call in calls:
        call.run()
    return rows
