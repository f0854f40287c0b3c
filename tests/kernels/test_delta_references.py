"""The delta rule's reference over the pool against the rule itself, and against torch's step of a CPU."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.delta_cases import DeltaShape, check_delta_decode, check_delta_prefill, delta_pool, delta_tokens
from support.examples import examples

from muxd.kernels import delta_rule, ops, paged_delta
from muxd.messages import Sampling
from muxd.worker.sequence import Sequence, Span
from muxd.worker.states import HostRecur, SequenceStates


@settings(max_examples=examples(40))
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 4), st.integers(2, 5))
def test_however_a_prompt_is_cut_its_state_is_the_same(sizes: list[int], steps: int, kernel: int) -> None:
    """Chunks, then one token at a time, against all tokens at once from a state of zeros."""
    shape, generator = DeltaShape(2, 2, 12, 20, kernel), torch.Generator().manual_seed(0)
    pool = delta_pool(shape, [False], generator)
    tokens = delta_tokens(shape, sum(sizes) + steps, generator)
    places = pool.states, pool.first, pool.rows
    found, done = [], 0
    for size in sizes:
        some = tokens.some(slice(done, done + size))
        starts, cached = (torch.tensor(x, dtype=torch.int32) for x in ([0, size], [done]))
        found.append(ops.delta_prefill(*some, *places, starts, cached))
        done += size
    for at in range(done, done + steps):
        some = tokens.some(slice(at, at + 1))
        position = torch.tensor([at], dtype=torch.int32)
        found.append(ops.delta_decode(*some, *places, position))
    state = torch.zeros(1, shape.heads, 12, 20)
    tail = torch.zeros(1, kernel - 1, shape.net.channels)
    mixed, decay, beta, conv = tokens
    wanted = delta_rule.recur(mixed[None], decay[None], beta[None], conv, state, tail)
    torch.testing.assert_close(torch.cat(found), wanted[0].flatten(1), atol=1e-5, rtol=1e-4)
    kept = pool.states.heads(pool.rows[0], pool.first, shape.heads)[1]
    torch.testing.assert_close(kept, state[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [DeltaShape(2, 2, 12, 20), DeltaShape(1, 3, 40, 24, 3, 416, 7)])
def test_a_state_lies_where_the_host_has_it(shape: DeltaShape) -> None:
    """Both sides of a restart, and both kinds of step, must agree on where a byte of a state is."""
    generator = torch.Generator().manual_seed(1)
    pool, tokens = delta_pool(shape, [True, True], generator), delta_tokens(shape, 9, generator)
    copy = pool.copied()
    memory = copy.states.floats.view(torch.uint8).flatten()
    host = SequenceStates(shape.net, memory, shape.block_bytes, copy.states.table)
    width = pool.rows.shape[1] - 1
    spans = [
        Span(Sequence(Sampling(), 0, state=line[:width].tolist()), 3, 3 + n)
        for line, n in zip(pool.rows, (5, 4), strict=True)
    ]
    wanted = HostRecur.chunks(host, spans)(2, *tokens)
    starts, cached = (torch.tensor(x, dtype=torch.int32) for x in ([0, 5, 9], [3, 3]))
    found = ops.delta_prefill(*tokens, pool.states, pool.first, pool.rows, starts, cached)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(pool.states.floats, copy.states.floats, atol=1e-5, rtol=1e-4, equal_nan=True)


def test_a_wrong_kernel_does_not_pass() -> None:
    """The comparisons themselves: a kernel that reads what lies there at a first token, or keeps nothing."""

    class Forgets:
        @staticmethod
        def delta_decode(
            mixed: Any, decay: Any, beta: Any, conv: Any, states: Any, first: Any, rows: Any, positions: Any
        ) -> Any:
            at = positions.clamp(min=1)
            return paged_delta.delta_decode(mixed, decay, beta, conv, states, first, rows, at)

        @staticmethod
        def delta_prefill(
            mixed: Any, decay: Any, beta: Any, conv: Any, states: Any, first: Any, rows: Any, *chunks: Any
        ) -> Any:
            kept, (starts, cached) = states.floats.clone(), chunks
            tokens = mixed, decay, beta, conv
            found = paged_delta.delta_prefill(*tokens, states, first, rows, starts, cached)
            states.floats.copy_(kept)
            return found

    with pytest.raises(AssertionError):
        check_delta_decode(Forgets, DeltaShape(), [0, 4])  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        check_delta_prefill(Forgets, DeltaShape(), [(3, 4)])  # type: ignore[arg-type]
