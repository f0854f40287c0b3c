"""K and V as float8_e4m3fn: to bytes and back, and in head blocks as the CPU uses them."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from muxd.kernels.float8 import FLOAT8, FP8_MAX, Unpacked, packed
from muxd.kernels.head_blocks import HeadBlocks
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.rope_write import rope_write
from muxd.kernels.row_layout import uniform

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_byte_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    whole = torch.arange(256, dtype=torch.uint8).repeat(3)
    out = torch.empty(768, dtype=dtype)
    Unpacked(dtype)(whole, out)
    torch.testing.assert_close(out, whole.view(FLOAT8).to(dtype), rtol=0, atol=0, equal_nan=True)
    assert int(out.isnan().sum()) == 6  # two bytes of 256


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_too_large_saturates_and_nan_stays(dtype: torch.dtype) -> None:
    wild = torch.tensor([449.0, 465.0, 6e4, -6e4, math.inf, -math.inf, math.nan, 448.0]).to(dtype)
    back = torch.empty(8, dtype=dtype)
    Unpacked(dtype)(packed(wild), back)
    assert back[:6].tolist() == [FP8_MAX, FP8_MAX, FP8_MAX, -FP8_MAX, FP8_MAX, -FP8_MAX]
    assert bool(back[6].isnan())
    assert float(back[7]) == FP8_MAX


@given(st.lists(st.floats(-FP8_MAX, FP8_MAX, width=32), min_size=2, max_size=2))
def test_rounding_is_off_by_a_sixteenth_at_most(numbers: list[float]) -> None:
    back = torch.empty(2)
    Unpacked(torch.float32)(packed(torch.tensor(numbers)), back)
    for number, kept in zip(numbers, back.tolist(), strict=True):
        assert abs(kept - number) <= max(abs(number) / 16, 2**-10)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [24, 64, 80])
def test_head_blocks_hold_more_tokens_and_read_back_what_as_kept_says(
    dtype: torch.dtype, head_dim: int
) -> None:
    torch.manual_seed(0)
    block_bytes, count = 4096, 6
    pool = torch.full((count * block_bytes,), 0xFF, dtype=torch.uint8)  # NaN
    blocks = HeadBlocks(pool, block_bytes, head_dim, dtype, FLOAT8)
    tokens = block_bytes // (2 * head_dim)
    assert blocks.tokens == tokens >= 2 * HeadBlocks(pool, block_bytes, head_dim, dtype).tokens
    blocks.clear(torch.tensor([1, 4]))
    wide = torch.randn(3, 5, head_dim).to(dtype) * 200
    kv = wide[:, 1:3]  # a slice of a projection: one key, one value
    kept = blocks.as_kept(kv)
    assert bool((kept.abs() <= FP8_MAX).all())
    at, slots = torch.tensor([[1, 1], [1, 1], [4, 4]]), torch.tensor([0, 5, tokens - 1])
    blocks.write(at, torch.stack((slots, slots + tokens), 1), kv)
    keys, values = (torch.empty(2, tokens * head_dim, dtype=dtype) for _ in range(2))
    chosen = torch.tensor([4, 1], dtype=torch.int32)
    blocks.gather((chosen, chosen), keys, values)
    for half, out in ((0, keys), (1, values)):
        found = out.view(2, tokens, head_dim)
        assert torch.equal(found[1, 0], kept[0, half])
        assert torch.equal(found[1, 5], kept[1, half])
        assert torch.equal(found[0, -1], kept[2, half])
        assert int((found != 0).any(-1).sum()) == 3, "the rest is zero"
    untouched = pool.view(count, block_bytes)[[0, 2, 3, 5]]
    assert bool((untouched == 0xFF).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_two_layouts_write_the_same_bytes(dtype: torch.dtype) -> None:
    """The write of the paged path, with nothing to rotate, against that of the gathered one."""
    torch.manual_seed(1)
    head_dim, block_bytes = 24, 1024
    memory = [torch.zeros(2 * block_bytes, dtype=torch.uint8) for _ in range(2)]
    table = torch.tensor([[1]], dtype=torch.int32)
    paged = PagedPool.over(memory[0], block_bytes, table, uniform(1, 1, head_dim), FLOAT8)
    qkv = (torch.randn(3, 3, head_dim) * 300).to(dtype)  # one query head, keys, values
    still = torch.ones(3, 1, head_dim, dtype=dtype), torch.zeros(3, 1, head_dim, dtype=dtype)
    positions, owners = torch.tensor([0, 1, 20], dtype=torch.int32), torch.zeros(3, dtype=torch.int32)
    rows = torch.zeros(1, 1, dtype=torch.int32)
    rope_write(qkv.clone(), *still, paged, 0, rows, positions, owners)
    gathered = HeadBlocks(memory[1], block_bytes, head_dim, dtype, FLOAT8)
    slots = torch.stack((positions, positions + gathered.tokens), 1).long()
    gathered.write(torch.ones(3, 2, dtype=torch.int64), slots, qkv[:, 1:])
    assert bool(memory[0].any())
    assert torch.equal(*memory)
