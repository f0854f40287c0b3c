"""Sequences with states in a pool, and what the delta rule's kernels make of them: in the interpreter, on a
GPU, and by the native step.

Whatever a kernel must not read is poison: the state of a sequence that begins is NaN, and so is what lies
behind every head and tail; row ids of padding lines name no row.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from muxd.kernels import paged_delta
from muxd.kernels.paged_states import PagedStates
from muxd.models.delta import DeltaNet
from muxd.models.state_layout import StateLayout, state_layout
from support.kernel_cases import NO_ROW, check


@dataclass
class DeltaShape:
    """What the cases vary."""

    key_heads: int = 1
    group: int = 2  # value heads of a key head
    key_dim: int = 16
    value_dim: int = 16
    kernel: int = 4
    block_bytes: int = 1024
    per_row: int = 5  # blocks
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def heads(self) -> int:
        return self.key_heads * self.group

    @property
    def net(self) -> DeltaNet:
        sizes = self.key_heads, self.heads, self.key_dim, self.value_dim, self.kernel
        return DeltaNet((True, False, True), *sizes)

    @property
    def layout(self) -> StateLayout:
        return state_layout(self.net, self.block_bytes)


class DeltaPool(NamedTuple):
    """States of some sequences, of layer 2 of three: those that have begun are drawn, the rest is poison."""

    states: PagedStates
    rows: Tensor
    first: int

    def copied(self) -> "DeltaPool":
        own = self.states
        states = PagedStates(own.floats.clone(), own.table, own.key_dim, own.value_dim)
        return self._replace(states=states)


def delta_pool(shape: DeltaShape, begun: list[bool | None], generator: torch.Generator) -> DeltaPool:
    """``begun``: of each sequence; None: padding."""
    layout = shape.layout
    width = -(-layout.blocks // shape.per_row)
    total = width * max(1, len(begun)) + 1
    floats = torch.full((total * shape.per_row, shape.block_bytes // 4), float("nan"))
    table = torch.randperm(total * shape.per_row, generator=generator).int().view(total, shape.per_row)
    states = PagedStates(floats, table, shape.key_dim, shape.value_dim)
    order = torch.randperm(total, generator=generator).int()
    rows = torch.full((max(1, len(begun)), width + 1), NO_ROW, dtype=torch.int32)
    sizes = shape.kernel - 1, shape.net.channels
    for i, has in enumerate(begun):
        if has is None:
            continue
        rows[i, :width], order = order[:width], order[width:]
        if has:
            where, held = states.heads(rows[i], layout.head(2), shape.heads)
            states.put_heads(where, torch.randn(held.shape, generator=generator))
            where, held = states.tail(rows[i], layout.tail(2), sizes)
            states.put_tail(where, torch.randn(held.shape, generator=generator).to(shape.dtype).float())
    placed = PagedStates(floats.to(shape.device), table.to(shape.device), shape.key_dim, shape.value_dim)
    return DeltaPool(placed, rows.to(shape.device), layout.head(2))


class DeltaTokens(NamedTuple):
    """What is projected of some tokens, and the convolution's weights."""

    mixed: Tensor
    decay: Tensor
    beta: Tensor
    conv: Tensor

    def some(self, part: slice) -> "DeltaTokens":
        return DeltaTokens(self.mixed[part], self.decay[part], self.beta[part], self.conv)


def delta_tokens(shape: DeltaShape, n: int, generator: torch.Generator) -> DeltaTokens:
    """A slice of a wider projection; decays from none to nearly all."""
    channels, heads = shape.net.channels, shape.heads
    wide = torch.randn(n, channels + 3, generator=generator).to(shape.dtype).to(shape.device)
    decay = -(torch.rand(n, heads, generator=generator) ** 3) * 8
    beta = torch.rand(n, heads, generator=generator)
    conv = torch.randn(channels, shape.kernel, generator=generator)
    return DeltaTokens(
        wide[:, :channels], decay.to(shape.device), beta.to(shape.device), conv.to(shape.device)
    )


def check_states(found: Tensor, wanted: Tensor) -> None:
    """Of whole pools: what is poison in one is in the other, the rest is equal within rounding."""
    assert torch.equal(found.isnan(), wanted.isnan())
    check(found.nan_to_num(), wanted.nan_to_num(), torch.float32)


def check_delta_decode(kernel: ModuleType, shape: DeltaShape, positions: list[int], seed: int = 0) -> None:
    """``kernel``'s step of one token against the reference: what is given, and the whole pool."""
    generator = torch.Generator().manual_seed(seed)
    pool = delta_pool(shape, [None if p < 0 else p > 0 for p in positions], generator)
    tokens = delta_tokens(shape, len(positions), generator)
    at, copy = torch.tensor(positions, dtype=torch.int32, device=shape.device), pool.copied()
    found = kernel.delta_decode(*tokens, pool.states, pool.first, pool.rows, at)
    wanted = paged_delta.delta_decode(*tokens, copy.states, copy.first, copy.rows, at)
    check(found, wanted, torch.float32)
    check_states(pool.states.floats, copy.states.floats)
    for i, position in enumerate(positions):
        assert position >= 0 or not found[i].any()


def check_delta_prefill(
    kernel: ModuleType, shape: DeltaShape, chunks: list[tuple[int, int]], seed: int = 0
) -> None:
    """The same of chunks (cached, new tokens), with padding tokens behind the last one."""
    generator = torch.Generator().manual_seed(seed)
    pool = delta_pool(shape, [cached > 0 for cached, _ in chunks], generator)
    total = sum(n for _, n in chunks)
    tokens = delta_tokens(shape, total + 3, generator)
    ends = torch.tensor([n for _, n in chunks]).cumsum(0).tolist()
    starts = torch.tensor([0, *ends], dtype=torch.int32, device=shape.device)
    cached, copy = torch.tensor([c for c, _ in chunks], dtype=torch.int32, device=shape.device), pool.copied()
    found = kernel.delta_prefill(*tokens, pool.states, pool.first, pool.rows, starts, cached)
    wanted = paged_delta.delta_prefill(*tokens, copy.states, copy.first, copy.rows, starts, cached)
    check(found[:total], wanted[:total], torch.float32)
    check_states(pool.states.floats, copy.states.floats)
