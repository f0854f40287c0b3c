"""Each operation against the formula written out, on round and odd shapes."""

from typing import Any

import pytest
import torch

from muxd.kernels.attention import FEW_PAIRS, decode_attention, prefill_attention
from muxd.kernels.gated import gelu_tanh_gate, silu_gate
from muxd.kernels.head_blocks import HeadBlocks
from muxd.kernels.linear import PackedLinear, PlainLinear, packs
from muxd.kernels.rms_norm import OffsetRmsNorm, RmsNorm
from muxd.kernels.rotary import angles, rotate_


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One query head and token [d] over keys [s, d], in float64."""
    weights = torch.softmax(k.double() @ q.double() * scale, 0)
    return (weights @ v.double()).float()


@pytest.mark.parametrize(("n", "inputs", "outputs"), [(1, 64, 64), (5, 33, 47), (32, 96, 160)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_packed_linear_is_the_plain_product(
    n: int, inputs: int, outputs: int, residual: bool, biased: bool
) -> None:
    if not packs(torch.bfloat16):
        pytest.skip("this torch or CPU has no oneDNN packing for bfloat16")
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs).bfloat16()
    x, add = torch.randn(n, inputs).bfloat16(), torch.randn(n, outputs).bfloat16() if residual else None
    before = None if add is None else add.clone()
    bias = torch.randn(outputs).bfloat16() if biased else None
    exact = x.double() @ weight.double().T + (0 if add is None else add.double())
    exact += 0 if bias is None else bias.double()
    for linear in (PackedLinear(weight, bias), PlainLinear(weight, bias)):
        found = linear(x, add=add)
        torch.testing.assert_close(found.double(), exact, atol=0.05, rtol=0.02)
    if add is not None and before is not None:
        assert torch.equal(add, before)


def test_packing_is_refused_for_types_it_does_not_serve() -> None:
    assert not packs(torch.float32)


@pytest.mark.parametrize("head_dim", [2, 24, 64])
def test_rotary_turns_each_pair_by_its_angle(head_dim: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3, head_dim)
    positions = torch.tensor([0, 1, 7, 100, 511])
    frequencies = torch.rand(head_dim // 2)
    pairs = torch.complex(x[..., : head_dim // 2], x[..., head_dim // 2 :])
    turned = pairs * torch.polar(torch.ones(5, 1, head_dim // 2), positions[:, None, None] * frequencies)
    found = rotate_(x.clone(), *angles(positions, frequencies, torch.float32))
    torch.testing.assert_close(found, torch.cat((turned.real, turned.imag), -1), atol=1e-4, rtol=1e-5)


def test_rotary_works_in_place_on_some_heads_of_a_projection() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8)
    turn = angles(torch.arange(4), torch.rand(4), torch.float32)
    wanted = torch.cat((rotate_(x[:, :5].clone(), *turn), x[:, 5:]), 1)
    rotate_(x[:, :5], *turn)
    assert torch.equal(x, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_against_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(7, 48).to(dtype), torch.randn(48).to(dtype)
    unit = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()
    close: dict[str, Any] = (
        {"atol": 1e-5, "rtol": 1e-5} if dtype is torch.float32 else {"atol": 0.03, "rtol": 0.01}
    )
    torch.testing.assert_close(RmsNorm(weight, 1e-5)(x).double(), unit * weight.double(), **close)
    offset = OffsetRmsNorm(weight, 1e-5)(x)
    torch.testing.assert_close(offset.double(), unit * (1 + weight.double()), **close)
    assert offset.dtype is dtype


def test_offset_norm_rounds_once() -> None:
    """1 + w rounded to bfloat16 first would lose most of a small w."""
    x = torch.ones(1, 64).bfloat16() * 256
    weight = torch.full((64,), 0.0029).bfloat16()
    found = OffsetRmsNorm(weight, 0.0)(x)
    assert torch.equal(found, (1 + weight.float()).bfloat16()[None])


def test_gates_against_the_formula() -> None:
    torch.manual_seed(0)
    both = torch.randn(5, 22)
    gate, up = both[:, :11].double(), both[:, 11:].double()
    kept = both.clone()
    torch.testing.assert_close(
        silu_gate(both).double(), gate / (1 + (-gate).exp()) * up, atol=1e-6, rtol=1e-5
    )
    inner = (2 / torch.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    wanted = 0.5 * gate * (1 + inner.tanh()) * up
    torch.testing.assert_close(gelu_tanh_gate(both).double(), wanted, atol=1e-6, rtol=1e-5)
    assert torch.equal(both, kept)


@pytest.mark.parametrize("head_dim", [64, 24])
def test_head_blocks_keep_keys_before_values_inside_their_block(head_dim: int) -> None:
    block_bytes, count = 4096, 9
    pool = torch.full((count * block_bytes,), 0xFF, dtype=torch.uint8)
    blocks = HeadBlocks(pool, block_bytes, head_dim, torch.float32)
    per_block = block_bytes // (2 * head_dim * 4)
    assert blocks.tokens == per_block
    kv = torch.randn(2, 4, head_dim)  # two tokens, two KV heads: keys, then values
    where = torch.tensor([[3, 7, 3, 7], [3, 8, 3, 8]])
    slots = torch.tensor([[0, 5, per_block, per_block + 5], [2, 1, per_block + 2, per_block + 1]])
    blocks.write(where, slots, kv)
    raw = pool.view(count, block_bytes).view(torch.float32)
    assert torch.equal(raw[3, :head_dim], kv[0, 0])
    assert torch.equal(raw[3, per_block * head_dim :][:head_dim], kv[0, 2])
    assert torch.equal(raw[8, head_dim : 2 * head_dim], kv[1, 1])
    keys, values = torch.empty(2, per_block * head_dim), torch.empty(2, per_block * head_dim)
    chosen = torch.tensor([8, 3], dtype=torch.int32)
    blocks.gather((chosen, chosen), keys, values)
    assert torch.equal(keys.view(2, per_block, head_dim)[1, 2], kv[1, 0])
    assert torch.equal(values.view(2, per_block, head_dim)[0, 1], kv[1, 3])
    blocks.clear(torch.tensor([3]))
    assert bool((raw[3, : 2 * per_block * head_dim] == 0).all())
    assert torch.equal(raw[8, head_dim : 2 * head_dim], kv[1, 1])


@pytest.mark.parametrize(("batch", "kv_heads", "group", "s"), [(1, 1, 4, 9), (2, 3, 3, 32), (5, 3, 1, 17)])
def test_decode_attention_with_unequal_lengths(batch: int, kv_heads: int, group: int, s: int) -> None:
    torch.manual_seed(0)
    head_dim, pairs, scale = 16, batch * kv_heads, 0.3
    q = torch.randn(batch, kv_heads * group, head_dim)
    k, v = torch.randn(pairs, s, head_dim), torch.randn(pairs, s, head_dim)
    lengths = [s - 3 * i for i in range(batch)]
    mask = torch.zeros(batch, s)
    for i, length in enumerate(lengths):
        mask[i, length:] = float("-inf")
    found = decode_attention(q, k, v, mask.repeat_interleave(kv_heads, 0)[:, None], scale)
    for i in range(batch):
        for head in range(kv_heads * group):
            pair = i * kv_heads + head // group
            wanted = attention(q[i, head], k[pair, : lengths[i]], v[pair, : lengths[i]], scale)
            torch.testing.assert_close(found.view(batch, -1, head_dim)[i, head], wanted, atol=1e-5, rtol=1e-4)


def test_both_ways_of_decode_attention_are_covered() -> None:
    assert FEW_PAIRS > 1 * 1
    assert 2 * 3 < FEW_PAIRS <= 5 * 3


@pytest.mark.parametrize(("n", "s"), [(63, 63), (64, 64), (129, 129), (300, 300), (300, 437), (65, 500)])
@pytest.mark.parametrize("window", [None, 50])
def test_tiled_bfloat16_prefill_is_the_untiled_one(n: int, s: int, window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(heads, tokens, 16).bfloat16() for heads, tokens in ((6, n), (2, s), (2, s)))
    query, key = torch.arange(s - n, s)[:, None], torch.arange(s)[None]
    hidden = (key > query) if window is None else (key > query) | (key <= query - window)
    mask = torch.zeros(n, s).masked_fill_(hidden, float("-inf"))
    wanted = prefill_attention(q.float(), k.float(), v.float(), mask, 0.25)
    plain = n == s and window is None
    found = prefill_attention(q, k, v, None if plain else mask.bfloat16(), 0.25)
    torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)


@pytest.mark.parametrize(("heads", "kv_heads", "n"), [(1, 1, 1), (6, 2, 13), (4, 1, 64)])
def test_prefill_attention_is_causal(heads: int, kv_heads: int, n: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(heads, n, 8), torch.randn(kv_heads, n, 8), torch.randn(kv_heads, n, 8)
    found = prefill_attention(q, k, v, None, 0.5)
    causal = torch.full((n, n), float("-inf")).triu(1)
    torch.testing.assert_close(prefill_attention(q, k, v, causal, 0.5), found, atol=1e-5, rtol=1e-4)
    for head in range(heads):
        pair = head // (heads // kv_heads)
        for token in range(n):
            wanted = attention(q[head, token], k[pair, : token + 1], v[pair, : token + 1], 0.5)
            torch.testing.assert_close(found[head, token], wanted, atol=1e-5, rtol=1e-4)
