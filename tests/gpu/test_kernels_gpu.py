"""Every Triton kernel on a real GPU against its reference: the interpreter's comparisons, larger shapes, and
what only a device shows: captured graphs, and that nothing waits for the host."""

from typing import Any

import pytest
import torch
from support.delta_cases import DeltaShape, check_delta_decode, check_delta_prefill
from support.kernel_cases import (
    Shape,
    check_decode,
    check_gates,
    check_grouped,
    check_prefill,
    check_rms_norm,
    check_rope_write,
    check_sample,
    paged,
    sampling_lines,
)

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)
pytest.importorskip("triton")

from muxd.kernels import (
    feed,
    feed_kernel,
    gated_kernel,
    grouped_kernel,
    ops,
    paged_decode,
    paged_decode_kernel,
    paged_delta_kernel,
    paged_prefill_kernel,
    rms_norm_kernel,
    rope_write_kernel,
    row_table_kernel,
    sampling_kernel,
)

pytestmark = pytest.mark.gpu

BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn
HEAD_DIMS = [64, 80, 96, 128, 256]
MODELS = [(64, 2, 7), (64, 8, 4), (128, 4, 7), (128, 8, 4), (256, 1, 4), (128, 8, 1), (64, 1, 32)]
EDGES: list[dict[str, Any]] = [{}, {"window": 64}, {"window": 65, "softcap": 30.0}]


def on_gpu(*arguments: Any, **options: Any) -> Shape:
    return Shape(*arguments, device="cuda", **options)  # type: ignore[misc]


@pytest.mark.parametrize("programs", [1, 9, 792])
@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_decode(head_dim: int, dtype: torch.dtype, edge: dict[str, Any], programs: int) -> None:
    lengths = [300, 0, 1, 64, 129, 2000]
    check_decode(paged_decode_kernel, on_gpu(head_dim, 2, 3, dtype, **edge), lengths, programs)


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_prefill(head_dim: int, dtype: torch.dtype, edge: dict[str, Any]) -> None:
    chunks = [(0, 300), (41, 5), (7, 0), (129, 130), (64, 1)]
    check_prefill(paged_prefill_kernel, on_gpu(head_dim, 2, 3, dtype, **edge), chunks)


@pytest.mark.parametrize(("head_dim", "kv_heads", "group"), MODELS)
def test_shapes_of_models(head_dim: int, kv_heads: int, group: int) -> None:
    shape = on_gpu(head_dim, kv_heads, group, BF16)
    check_decode(paged_decode_kernel, shape, [1500, 700, 17], programs=792)
    check_prefill(paged_prefill_kernel, shape, [(0, 700), (500, 300)])


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP32])
@pytest.mark.parametrize("head_dim", [128, 512])
def test_heads_of_two_blocks(head_dim: int, dtype: torch.dtype, reads: bool) -> None:
    shape = on_gpu(head_dim, 2, 4, dtype, wide=True, reads=reads)
    check_decode(paged_decode_kernel, shape, [300, 0, 1, 64, 129], 3)
    check_prefill(paged_prefill_kernel, shape, [(0, 70), (41, 5), (7, 0), (63, 1)])
    check_rope_write(rope_write_kernel, shape, [0, 5, -1, 70], None, True, False, not reads)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_float8_pool(head_dim: int) -> None:
    shape = on_gpu(head_dim, 2, 4, BF16, kv_dtype=FP8)
    check_decode(paged_decode_kernel, shape, [300, 0, 77], programs=792)
    check_prefill(paged_prefill_kernel, shape, [(0, 200), (90, 7)])
    check_rope_write(rope_write_kernel, shape, [0, 5, -1, 70], None, True, True)


@pytest.mark.parametrize("norms", [False, True])
@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_rope_write(head_dim: int, dtype: torch.dtype, norms: bool) -> None:
    shape = on_gpu(head_dim, 2, 3, dtype)
    check_rope_write(rope_write_kernel, shape, [0, 31, -1, 40], None, norms, norms)
    positions = [*range(20, 150), *range(200), -1]
    check_rope_write(rope_write_kernel, shape, positions, [*([0] * 130), *([1] * 200), 0], norms, False)


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("size", [64, 97, 640, 896, 3584, 4096, 5120, 16384])
def test_rms_norm(size: int, dtype: torch.dtype) -> None:
    for offset in (False, True):
        check_rms_norm(rms_norm_kernel, 33, size, dtype, offset, "cuda")


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("inner", [64, 97, 4864, 18944])
def test_gates(inner: int, dtype: torch.dtype) -> None:
    check_gates(gated_kernel, 33, inner, dtype, "cuda")


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize("n", [1, 32, 700])
@pytest.mark.parametrize(("fan", "shape"), [(8, (128, 1536, 2048)), (2, (8, 4096, 1792)), (3, (5, 97, 72))])
def test_grouped(fan: int, shape: tuple[int, int, int], n: int, dtype: torch.dtype) -> None:
    check_grouped(grouped_kernel, n, fan, shape, dtype, device="cuda")


@pytest.mark.parametrize("dtype", [BF16, FP16, FP32])
@pytest.mark.parametrize(
    ("key_heads", "group", "dims"), [(16, 2, (128, 128)), (2, 3, (24, 20)), (1, 1, (256, 64))]
)
def test_delta_rule(key_heads: int, group: int, dims: tuple[int, int], dtype: torch.dtype) -> None:
    shape = DeltaShape(key_heads, group, *dims, block_bytes=8192, per_row=32, dtype=dtype, device="cuda")
    check_delta_decode(paged_delta_kernel, shape, [0, -1, 5, 900, 1])
    check_delta_prefill(paged_delta_kernel, shape, [(0, 70), (41, 5), (7, 0), (3, 1), (2, 2)])


@pytest.mark.parametrize("shortlist", [16, 1024])
@pytest.mark.parametrize("vocab", [700, 5000, 151_936])
def test_sampling(vocab: int, shortlist: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    order = torch.stack([torch.randperm(vocab, generator=generator) for _ in range(7)])
    logits = ((order / vocab * 2 - 1) * 6).cuda()
    params: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 5, "position": 7},
        {"temperature": 0.8, "top_k": 5, "seed": 2**63 + 1, "slot": 1, "repetition": 1.3, "presence": 0.5},
        {"temperature": 1.0, "top_p": 0.8, "seed": 9, "slot": 2, "frequency": 0.3},
        {"temperature": 2.0, "top_p": 0.95, "min_p": 0.001, "top_k": 3000, "banned": (3, 4), "free_from": 3},
        {"temperature": 0.7, "min_p": 0.05, "seed": 2**64 - 1, "position": 100_000},
        {"slot": 3, "presence": 1.5},
    ]
    check_sample(sampling_kernel, logits, params, shortlist)
    lines, counts = sampling_lines(params, "cuda"), torch.zeros(4, vocab, dtype=torch.int32, device="cuda")
    plain = sampling_kernel.sample(logits.bfloat16(), lines, counts, greedy=True)
    assert plain.tolist() == logits.bfloat16().float().cpu().argmax(-1).tolist()


def test_tables() -> None:
    ids = torch.tensor([3, -1, 0], dtype=torch.int32, device="cuda")
    blocks = torch.randint(0, 10**6, (3, 1300), dtype=torch.int32, device="cuda")
    table = torch.full((5, 1300), 7, dtype=torch.int32, device="cuda")
    row_table_kernel.learn_rows(table, ids, blocks)
    assert torch.equal(table[3], blocks[0])
    assert torch.equal(table[0], blocks[2])
    assert bool((table[[1, 2, 4]] == 7).all())
    rows = torch.full((4, 9), 7, dtype=torch.int32, device="cuda")
    row_table_kernel.grow_rows(rows, ids, ids + 1, ids * 10)
    assert rows[3, 4] == 30
    assert rows[0, 1] == 0
    assert int((rows == 7).sum()) == 34
    columns = torch.tensor([2, -1, 8], dtype=torch.int32, device="cuda")
    taken = row_table_kernel.take_rows(rows, ids.clamp(min=0), columns, ids * 10)
    assert rows[3, 2] == taken[0, 2] == 30
    assert rows[0, 8] == taken[2, 8] == 0
    assert torch.equal(taken[0], rows[3])


def test_feed() -> None:
    tokens = torch.tensor([5, -1, -3, 0] * 50, dtype=torch.int32, device="cuda")
    positions = torch.arange(-1, 199, dtype=torch.int32, device="cuda")
    before = torch.arange(900, 904, device="cuda")
    for found, wanted in zip(*(m.feed(tokens, positions, before) for m in (feed_kernel, feed)), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("block", [2**19 + 5, 2**20 + 3])
def test_blocks_beyond_32_bits_of_elements(block: int) -> None:
    """A pool of many GiB: the offset of a block's elements does not fit an int32."""
    if torch.cuda.mem_get_info()[0] < 3 * block * 8192:
        pytest.skip("not enough free device memory")
    shape = on_gpu(128, 1, 4, BF16)
    pool, rows = paged(shape, [40], torch.Generator().manual_seed(0))
    far = torch.zeros(block + 8, 4096, dtype=BF16, device="cuda")
    far[block : block + pool.blocks.shape[0]] = pool.blocks
    moved = type(pool)(far, pool.table + block, pool.layout)
    q = torch.randn(1, 4, 128, device="cuda").bfloat16()
    lengths = torch.tensor([40], dtype=torch.int32, device="cuda")
    plan = ops.plan_decode(lengths, 1)
    found = ops.decode_attention(q, moved, 1, rows, lengths, plan, scale=0.1)
    assert torch.equal(found, ops.decode_attention(q, pool, 1, rows, lengths, plan, scale=0.1))


def test_a_captured_step_follows_lengths_rows_and_tokens() -> None:
    """One graph: write, attend, sample; replayed after the batch has changed under it."""
    shape, generator = on_gpu(64, 2, 7, BF16), torch.Generator().manual_seed(0)
    pool, rows = paged(shape, [700, 90, 0], generator)
    qkv = torch.randn(3, 18, 64, generator=generator).bfloat16().cuda()
    turn = torch.ones(3, 1, 64, device="cuda", dtype=BF16), torch.zeros(3, 1, 64, device="cuda", dtype=BF16)
    lengths = torch.tensor([150, 90, 0], dtype=torch.int32, device="cuda")
    positions = lengths - 1
    projection = torch.randn(14 * 64, 3000, generator=generator).bfloat16().cuda()
    counts = torch.zeros(1, 3000, dtype=torch.int32, device="cuda")
    lines = sampling_lines([{"temperature": 1.0, "top_p": 0.9, "seed": s} for s in range(3)], "cuda")

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        q = ops.rope_and_write(qkv, *turn, pool, 1, rows, positions)
        plan = ops.plan_decode(lengths, 2, programs=792)
        seen = ops.decode_attention(q, pool, 1, rows, lengths, plan, scale=0.125)
        return seen, ops.sample(seen @ projection, lines, counts)

    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        seen, tokens = step()
    for change in ([150, 90, 0], [700, 1, 0], [0, 77, 0], [1, 2, 0]):
        lengths.copy_(torch.tensor(change, dtype=torch.int32))
        positions.copy_(lengths - 1)
        graph.replay()
        plan = paged_decode.plan_decode(lengths, 2)
        wanted = paged_decode.decode_attention(qkv[:, :14], pool, 1, rows, lengths, plan, scale=0.125)
        torch.testing.assert_close(seen.float(), wanted.float(), atol=1.6e-2, rtol=1.6e-2)
        assert bool(((tokens >= 0) & (tokens < 3000)).all())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_nothing_waits_for_the_host() -> None:
    shape, generator = on_gpu(64, 2, 7, BF16), torch.Generator().manual_seed(0)
    pool, rows = paged(shape, [70, 0], generator)
    q = torch.randn(2, 14, 64, generator=generator).bfloat16().cuda()
    lengths = torch.tensor([70, 0], dtype=torch.int32, device="cuda")
    lines = sampling_lines([{"temperature": 1.0, "top_k": 9}, {"slot": 0}], "cuda")
    counts = torch.zeros(1, 896, dtype=torch.int32, device="cuda")
    ids = torch.tensor([0, -1], dtype=torch.int32, device="cuda")
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan = ops.plan_decode(lengths, 2, programs=792)
        seen = ops.decode_attention(q, pool, 1, rows, lengths, plan, scale=0.1)
        ops.sample(ops.rms_norm(seen, seen[0].clone(), 1e-6), lines, counts)
        ops.learn_rows(counts, ids, counts.clone().expand(2, -1).contiguous())
        ops.count_tokens(counts, ids, ids, ids)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_a_batch_of_padding_only() -> None:
    check_decode(paged_decode_kernel, on_gpu(64, 1, 2), [0, 0], programs=792)
    check_prefill(paged_prefill_kernel, on_gpu(64, 1, 2), [(0, 0), (5, 0)])
    check_rope_write(rope_write_kernel, on_gpu(64, 1, 2), [-1, -1], None, False, False)
