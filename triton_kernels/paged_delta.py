"""The gated delta rule behind its convolution, over states that stay where they lie in the pool: for one new
token of each sequence, and for chunks of prompts.

What is computed is told in ``delta_rule``; where a state lies, in ``paged_states``. A state counts as zeros
at a sequence's first token: what lies there then is not read. The Triton kernels (``paged_delta_kernel``)
split a head's state by columns, which never meet: each program has some in registers and takes the tokens
one by one.
"""

import torch
from torch import Tensor

from muxd.kernels.delta_rule import recur
from muxd.kernels.paged_states import PagedStates


def delta_decode(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    positions: Tensor,
) -> Tensor:
    """The reference. mixed [b, channels], queries, keys and values as projected, lines any stride apart;
    decay (log) and beta float32 [b, heads]; conv float32 [channels, kernel]; ``first``: the block of a
    state where the layer's part begins; rows int32 [b, width]: the state rows of each sequence; positions
    int32 [b], -1 for padding, whose state is neither read nor written and whose output is 0. Returns float32
    [b, heads · value_dim].
    """
    out = torch.zeros(mixed.shape[0], decay.shape[1] * states.value_dim, device=mixed.device)
    for i, position in enumerate(positions.tolist()):
        if position >= 0:
            here = slice(i, i + 1)
            out[here] = _run(
                mixed[here], decay[here], beta[here], conv, states, first, rows[i], position == 0
            )
    return out


def delta_prefill(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    starts: Tensor,
    cached: Tensor,
) -> Tensor:
    """The reference, as ``delta_decode`` for chunks of b sequences, n tokens one after another: mixed
    [n, channels]; starts int32 [b + 1], where each chunk begins; cached int32 [b], tokens before it."""
    out = torch.zeros(mixed.shape[0], decay.shape[1] * states.value_dim, device=mixed.device)
    begins = starts.tolist()
    for i, before in enumerate(cached.tolist()):
        here = slice(begins[i], begins[i + 1])
        if here.stop > here.start:
            out[here] = _run(mixed[here], decay[here], beta[here], conv, states, first, rows[i], before == 0)
    return out


def _run(
    mixed: Tensor,
    decay: Tensor,
    beta: Tensor,
    conv: Tensor,
    states: PagedStates,
    first: int,
    rows: Tensor,
    new: bool,
) -> Tensor:
    """One sequence's tokens [n, ...]."""
    heads, (channels, kernel) = decay.shape[1], conv.shape
    of_heads, state = states.heads(rows, first, heads)
    behind = first + heads * states.head_blocks
    of_tail, tail = states.tail(rows, behind, (kernel - 1, channels))
    if new:
        state.zero_()
        tail.zero_()
    found = recur(mixed[None], decay[None], beta[None], conv, state[None], tail[None])
    states.put_heads(of_heads, state)
    states.put_tail(of_tail, tail)
    return found[0].flatten(1)
