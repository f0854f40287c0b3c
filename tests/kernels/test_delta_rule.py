"""The gated delta rule: token by token as transformers computes it, and a chunk at a time the same."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.examples import examples
from transformers.models.qwen3_5.modeling_qwen3_5 import torch_recurrent_gated_delta_rule

from muxd.kernels.delta_rule import chunked_rule, convolved, delta_rule, gated_norm, recur, unit

Tensors = tuple[torch.Tensor, ...]


def drawn(seed: int, b: int, n: int, groups: int, each: int, keys: int, values: int, kernel: int) -> Tensors:
    """mixed, decay, beta, conv, state, tail."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    heads = groups * each
    channels = 2 * groups * keys + heads * values
    decay = -torch.exp(2 * normal(b, n, heads))  # from nothing forgotten to everything
    return (
        normal(b, n, channels), decay, torch.sigmoid(normal(b, n, heads)), normal(channels, kernel),
        normal(b, heads, keys, values), normal(b, kernel - 1, channels),
    )  # fmt: skip


shapes = st.tuples(
    st.integers(0, 999), st.integers(1, 3), st.integers(1, 150), st.integers(1, 3), st.integers(1, 3),
    st.integers(1, 20), st.integers(1, 20), st.integers(2, 5),
)  # fmt: skip


@settings(max_examples=examples(25), deadline=None)
@given(shapes)
def test_a_chunk_at_a_time_is_token_by_token(shape: tuple[int, ...]) -> None:
    mixed, decay, beta, conv, state, tail = drawn(*shape)
    other, before = state.clone(), tail.clone()
    wanted = recur(mixed, decay, beta, conv, state, tail)
    found = recur(mixed, decay, beta, conv, other, before, chunked=True)
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(other, state, atol=2e-4, rtol=2e-4)
    assert torch.equal(before, tail)


@settings(max_examples=examples(25), deadline=None)
@given(shapes, st.floats(0, 1), st.booleans())
def test_a_state_and_its_tail_take_up_where_they_were(
    shape: tuple[int, ...], part: float, chunked: bool
) -> None:
    mixed, decay, beta, conv, state, tail = drawn(*shape)
    other, before = state.clone(), tail.clone()
    wanted = recur(mixed, decay, beta, conv, state, tail)
    cut = int(part * mixed.shape[1])
    found = [
        recur(mixed[:, here], decay[:, here], beta[:, here], conv, other, before, chunked=chunked)
        for here in (slice(0, cut), slice(cut, None))
        if mixed[:, here].shape[1]
    ]
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(other, state, atol=2e-4, rtol=2e-4)
    assert torch.equal(before, tail)


@pytest.mark.parametrize("begins", [True, False])
def test_the_rule_is_that_of_transformers(begins: bool) -> None:
    _, decay, beta, _, state, _ = drawn(1, 2, 17, 3, 2, 12, 10, 4)
    draw = torch.Generator().manual_seed(2)
    q, k = (torch.randn(2, 17, 6, 12, generator=draw) for _ in "qk")
    v = torch.randn(2, 17, 6, 10, generator=draw)
    state = torch.zeros_like(state) if begins else state
    wanted, last = torch_recurrent_gated_delta_rule(
        q, k, v, decay, beta, initial_state=state, output_final_state=True, use_qk_l2norm_in_kernel=True
    )
    for rule in (delta_rule, chunked_rule):
        own = state.clone()
        found = rule(unit(q) * 12**-0.5, unit(k), v, decay, beta, own)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(own, last, atol=1e-5, rtol=1e-5)


def test_the_convolution_sees_the_tokens_before_and_none_after() -> None:
    mixed, _, _, conv, _, tail = drawn(3, 2, 9, 2, 1, 4, 4, 4)
    lines = torch.cat((tail, mixed), 1).transpose(1, 2)
    channels = lines.shape[1]
    wanted = torch.nn.functional.conv1d(lines, conv[:, None], groups=channels).transpose(1, 2)
    torch.testing.assert_close(convolved(mixed, tail, conv), torch.nn.functional.silu(wanted))
    assert torch.equal(tail, mixed[:, -3:])


def test_a_token_of_bfloat16_goes_through_a_state_of_float32() -> None:
    mixed, decay, beta, conv, state, tail = drawn(4, 1, 6, 1, 2, 8, 8, 4)
    read = recur(mixed.bfloat16(), decay, beta, conv, state, tail)
    assert (read.dtype, state.dtype, tail.dtype) == (torch.float32,) * 3


def test_the_norm_is_gated_after_it() -> None:
    x, z, weight = torch.randn(3, 2, 5), torch.randn(3, 2, 5), torch.randn(5)
    wanted = torch.nn.functional.rms_norm(x, (5,), weight, 1e-6) * torch.nn.functional.silu(z)
    torch.testing.assert_close(gated_norm(x, z, weight, 1e-6), wanted)
    assert gated_norm(x, z.half(), weight, 1e-6).dtype == torch.float16
