"""Paged attention and the write before it: every dtype and head_dim, and shapes as hypothesis draws them."""

import mmap
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.kernel_cases import Shape, check_decode, check_prefill, check_rope_write, paged

pytest.importorskip("triton")

from muxd.kernels import paged_decode_kernel, paged_prefill_kernel, rope_write_kernel
from muxd.kernels.paged_pool import PagedPool

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
HEAD_DIMS = [64, 80, 96, 128, 256]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_decode(dtype: torch.dtype, head_dim: int) -> None:
    check_decode(paged_decode_kernel, Shape(head_dim, 2, 3, dtype), [33, 0, 1, 400], programs=8)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_prefill(dtype: torch.dtype, head_dim: int) -> None:
    check_prefill(paged_prefill_kernel, Shape(head_dim, 1, 3, dtype), [(0, 50), (41, 5), (7, 0), (63, 1)])


@pytest.mark.parametrize("group", [1, 2, 4, 7, 8, 16])
def test_groups_are_packed_whole(group: int) -> None:
    shape = Shape(64, 2, group, torch.bfloat16)
    check_decode(paged_decode_kernel, shape, [70, 3], programs=2)
    check_prefill(paged_prefill_kernel, shape, [(20, 70), (0, 3)])


@pytest.mark.parametrize("window", [1, 16, 63, 64, 65, 128, 129, 130, 500])
def test_window_edges(window: int) -> None:
    shape = Shape(64, 1, 2, window=window)
    check_decode(paged_decode_kernel, shape, [129, 64, 1], programs=4)
    check_prefill(paged_prefill_kernel, shape, [(64, 65), (0, 129), (128, 1)])


@pytest.mark.parametrize("programs", [1, 3, 8, 100])
def test_how_it_is_cut_does_not_show(programs: int) -> None:
    """Among short contexts a long one, of one item or of several, of which the last may be short."""
    check_decode(paged_decode_kernel, Shape(128, 1, 4), [300, 0, 64, 65, 1100], programs)


def test_many_parts_are_merged() -> None:
    """More than one turn of the merge reads, the last turn not full."""
    check_decode(paged_decode_kernel, Shape(16, 1, 1), [19 * 256 - 3, 5], programs=1000)


def test_more_sequences_than_are_looked_at_together() -> None:
    lengths = [(i * 37) % 50 for i in range(140)]
    lengths[133] = 600
    check_decode(paged_decode_kernel, Shape(16, 1, 1), lengths, programs=20)


@pytest.mark.parametrize("programs", [1, 12])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sinks(dtype: torch.dtype, programs: int) -> None:
    shape = Shape(64, 2, 4, dtype, window=30, sunk=True)
    check_decode(paged_decode_kernel, shape, [70, 0, 3, 300], programs=programs)
    check_prefill(paged_prefill_kernel, shape, [(20, 70), (0, 3), (5, 0)])


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn])
@pytest.mark.parametrize("head_dim", [64, 160, 512])
def test_heads_of_two_blocks(head_dim: int, dtype: torch.dtype) -> None:
    """Twice as wide as the other layers': keys in one block, values in the next."""
    kept = dtype if dtype.itemsize == 1 else None
    shape = Shape(head_dim, 2, 2, torch.float16 if kept else dtype, kv_dtype=kept, wide=True)
    check_decode(paged_decode_kernel, shape, [33, 0, 1, 400], programs=8)
    check_prefill(paged_prefill_kernel, shape, [(0, 40), (31, 5), (7, 0)])
    check_rope_write(rope_write_kernel, shape, [0, 5, -1, 70], None, True, False, True)
    check_rope_write(rope_write_kernel, shape, [3, 0, 1, -1], [0, 1, 1, 0], False, False)


@pytest.mark.parametrize("wide", [False, True])
def test_a_layer_that_reads_another_ones_keys_and_values(wide: bool) -> None:
    """It turns queries and writes nothing."""
    shape = Shape(64, 2, 3, torch.bfloat16, wide=wide, reads=True)
    check_decode(paged_decode_kernel, shape, [33, 0, 300], programs=4)
    check_prefill(paged_prefill_kernel, shape, [(0, 40), (31, 5)])
    check_rope_write(rope_write_kernel, shape, [0, 5, -1, 70], None, True, False)


@pytest.mark.parametrize(
    ("head_dim", "dtype"), [(64, torch.bfloat16), (80, torch.float16), (96, torch.float32)]
)
def test_float8_keys_and_values(head_dim: int, dtype: torch.dtype) -> None:
    shape = Shape(head_dim, 2, 4, dtype, kv_dtype=torch.float8_e4m3fn)
    check_decode(paged_decode_kernel, shape, [33, 0, 300], programs=6)
    check_prefill(paged_prefill_kernel, shape, [(40, 5), (0, 70)])
    check_rope_write(rope_write_kernel, shape, [0, 5, -1, 70], None, True, True)


def test_a_batch_of_padding_only() -> None:
    check_decode(paged_decode_kernel, Shape(64, 1, 2), [0, 0], programs=4)
    check_prefill(paged_prefill_kernel, Shape(64, 1, 2), [(0, 0), (5, 0)])
    check_rope_write(rope_write_kernel, Shape(64, 1, 2), [-1, -1], None, False, False)


@pytest.mark.parametrize("first", [2**19 - 1, 2**20 + 3])
def test_blocks_beyond_32_bits_of_elements(first: int) -> None:
    """Where a pool of many GiB has its last blocks: addresses alone, no memory lies before them."""
    shape, generator = Shape(128, 1, 4, torch.bfloat16), torch.Generator().manual_seed(0)
    pool, rows = paged(shape, [40], generator)
    size = (first + pool.blocks.shape[0]) * shape.block_bytes
    fd = os.memfd_create("sparse")
    os.ftruncate(fd, size)
    room = mmap.mmap(fd, size)
    os.close(fd)
    blocks = torch.frombuffer(room, dtype=torch.bfloat16).view(-1, shape.block_bytes // 2)
    blocks[first:] = pool.blocks
    far = PagedPool(blocks, pool.table + first, pool.layout)
    q = torch.randn(3, 4, 128, generator=generator).bfloat16()
    ends, cached = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([37], dtype=torch.int32)
    lengths = torch.tensor([40], dtype=torch.int32)
    plan = paged_decode_kernel.plan_decode(lengths, 1)
    for found, wanted in zip(
        *(
            (
                paged_decode_kernel.decode_attention(q[:1], own, 1, rows, lengths, plan, scale=0.1),
                paged_prefill_kernel.prefill_attention(q, own, 1, rows, ends, cached, scale=0.1),
            )
            for own in (far, pool)
        ),
        strict=True,
    ):
        assert torch.equal(found, wanted)
    turn = torch.ones(1, 1, 128).bfloat16(), torch.zeros(1, 1, 128).bfloat16()
    for own in (far, pool):
        qkv = torch.arange(6 * 128).view(1, 6, 128).bfloat16()
        rope_write_kernel.rope_write(qkv, *turn, own, 1, rows, lengths - 1)
    assert torch.equal(blocks[first:].view(torch.int16), pool.blocks.view(torch.int16))
    assert not blocks[:16].any()


SHAPES = st.builds(
    Shape,
    head_dim=st.sampled_from([64, 80, 96]),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 8),
    dtype=st.sampled_from(DTYPES),
    window=st.none() | st.integers(1, 150),
    softcap=st.none() | st.floats(1, 60),
    sunk=st.booleans(),
    block_bytes=st.sampled_from([4096, 8192, 16384]),
)


@settings(max_examples=25)
@given(SHAPES, st.lists(st.integers(0, 700), min_size=1, max_size=3), st.integers(1, 20), st.integers(0, 99))
def test_any_decode(shape: Shape, lengths: list[int], programs: int, seed: int) -> None:
    check_decode(paged_decode_kernel, shape, lengths, programs, seed)


CHUNKS = st.lists(st.tuples(st.integers(0, 90), st.integers(0, 90)), min_size=1, max_size=3)


@settings(max_examples=25)
@given(SHAPES, CHUNKS, st.integers(0, 99))
def test_any_prefill(shape: Shape, chunks: list[tuple[int, int]], seed: int) -> None:
    check_prefill(paged_prefill_kernel, shape, chunks, seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("norms", [False, True])
def test_rope_write_of_a_decode_batch(dtype: torch.dtype, head_dim: int, norms: bool) -> None:
    check_rope_write(rope_write_kernel, Shape(head_dim, 2, 2, dtype), [0, 31, -1, 40], None, norms, norms)


OWNED = st.lists(st.tuples(st.integers(-1, 150), st.integers(0, 2)), min_size=1, max_size=5, unique=True)


@settings(max_examples=15)
@given(SHAPES, OWNED, st.booleans(), st.booleans(), st.booleans())
def test_any_rope_write(
    shape: Shape, tokens: list[tuple[int, int]], owned: bool, norms: bool, offset: bool
) -> None:
    """Any positions of any sequences, padding among them, in blocks whose T need not be a power of two."""
    positions, owners = [position for position, _ in tokens], [owner for _, owner in tokens]
    check_rope_write(rope_write_kernel, shape, positions, owners if owned else None, norms, offset)


@pytest.mark.parametrize("norms", [False, True])
def test_rope_write_of_a_prefill_batch(norms: bool) -> None:
    positions = [*range(20, 150), *range(131), -1, -1]  # more tokens than programs of one token take
    owners = [*([0] * 130), *([1] * 131), 0, 0]
    check_rope_write(rope_write_kernel, Shape(80, 1, 1), positions, owners, norms, False)
