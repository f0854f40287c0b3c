"""Every kernel in every configuration compiled for a Hopper GPU, without one, through the path of a launch.

Asserted of each: no register spills, and registers and shared memory that one SM has.
"""

import importlib.util
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from support.kernel_cases import sampling_lines

from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.row_layout import KvHeads, laid_out

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

import triton
from support.hopper import REGISTERS, SHARED, hopper

from muxd.kernels import (
    feed_kernel,
    gated_kernel,
    grouped_kernel,
    paged_decode_kernel,
    paged_delta_kernel,
    paged_prefill_kernel,
    rms_norm_kernel,
    rope_write_kernel,
    row_table_kernel,
    sampling_kernel,
)
from muxd.kernels.grouped import Groups
from muxd.kernels.launch import Call
from muxd.kernels.paged_decode import AN_SM
from muxd.kernels.paged_states import PagedStates

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
CUOBJDUMP = TOOLS / "cuobjdump"
if not CUOBJDUMP.exists() or not (TOOLS / "ptxas").exists():
    pytest.skip("this triton wheel has no ptxas and cuobjdump", allow_module_level=True)

SM_SHARED = 233_472  # bytes that one SM shares out
USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")
WAIT = r"cp\.async\.wait_group\s+(\d+)"
COPY = r"cp\.async\.c[ag]\.shared\.global [^;]*\], (0x[0-9a-f]+)"
BF16, FP16, FP32, FP8 = torch.bfloat16, torch.float16, torch.float32, torch.float8_e4m3fn


@pytest.fixture(scope="module", autouse=True)
def _hopper() -> Iterator[None]:
    with hopper():
        yield


class Compiled(NamedTuple):
    """Of a kernel as compiled. ``waits``: groups of copies that each wait leaves on their way; ``copies``:
    bytes of each asynchronous copy of a thread."""

    name: str
    registers: int
    stack: int
    shared: int
    warps: int
    waits: list[int]
    copies: set[int]

    @property
    def an_sm(self) -> int:
        """Programs that one SM holds; each takes another KiB of its shared memory (CUDA Programming Guide,
        9.0)."""
        return min(
            REGISTERS // (-(-self.registers // 8) * 8 * 32 * self.warps), SM_SHARED // (self.shared + 1024)
        )


def facts(call: Call, folder: Path) -> Compiled:
    kernel = call.kernel.warmup(*call.arguments, grid=call.grid, **call.options)
    binary = folder / f"{kernel.metadata.name}.cubin"
    binary.write_bytes(kernel.asm["cubin"])
    command = [str(CUOBJDUMP), "--dump-resource-usage", str(binary)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = USAGE.search(told)
    assert usage is not None, told
    call.kernel.device_caches.clear()  # nothing compiled for the pretended device stays
    waits, copies = (re.findall(words, kernel.asm["ptx"]) for words in (WAIT, COPY))
    metadata, (registers, stack) = kernel.metadata, map(int, usage.groups())
    return Compiled(
        metadata.name, registers, stack, metadata.shared, metadata.num_warps,
        [int(number) for number in waits], {int(size, 16) for size in copies},
    )  # fmt: skip


def compile_all(calls: list[Call], folder: Path) -> None:
    for call in calls:
        found = facts(call, folder)
        assert found.stack == 0, f"{found.name} spills"  # what does not fit the registers lies there
        assert found.registers * 32 * found.warps <= REGISTERS, found.name
        assert found.shared <= SHARED, found.name


def decode_calls(
    q: torch.Tensor, own: PagedPool, layer: int, rows: torch.Tensor, lengths: torch.Tensor, sms: int = 132,
    **options: Any,
) -> list[Call]:  # fmt: skip
    """Of a step of one layer."""
    cut: dict[str, Any] = {"window": options.get("window"), "programs": AN_SM * sms}
    plan, made = paged_decode_kernel.plan_calls(lengths, own.layer(layer).kv_heads, **cut)
    attend = paged_decode_kernel.decode_calls(q, own, layer, rows, lengths, plan, scale=0.1, **options)[1]
    return [*made, *attend]


def pool(head_dim: int, kv_heads: int, dtype: torch.dtype, wide: bool = False) -> PagedPool:
    """Of two layers; ``wide``: the second's heads are twice as wide as the first's."""
    own = KvHeads(kv_heads, head_dim)
    layout = laid_out((KvHeads(kv_heads, head_dim // 2) if wide else own, own))
    memory = torch.empty(64 * 8192, dtype=torch.uint8)
    return PagedPool.over(memory, 8192, torch.zeros(8, layout.blocks, dtype=torch.int32), layout, dtype)


# head_dim, KV heads, group, dtype, pool's dtype, window and soft cap
ATTENTION: list[tuple[int, int, int, torch.dtype, torch.dtype, dict[str, Any]]] = [
    *((d, 2, 4, BF16, BF16, {}) for d in (64, 80, 96, 128, 256)),
    *((d, 2, 4, FP16, FP16, {}) for d in (128, 256)),
    *((d, 2, 2, FP32, FP32, {}) for d in (64, 80, 128, 256)),
    *((d, 2, 2, BF16, BF16, {"window": 512, "softcap": 50.0}) for d in (64, 96, 128, 256)),
    (64, 2, 7, BF16, BF16, {}),  # Qwen2.5 0.5B
    (128, 4, 7, BF16, BF16, {}),  # Qwen2.5 7B
    (256, 1, 4, BF16, BF16, {"window": 512}),  # Gemma 3
    *((128, 8, group, BF16, BF16, {}) for group in (1, 5, 32)),
    *((d, 2, 4, BF16, FP8, {}) for d in (64, 80, 96, 128, 256)),
    (256, 1, 4, BF16, FP8, {"window": 512}),  # Gemma 3
    (128, 2, 4, FP16, FP8, {}),
    *((d, 2, 2, FP32, FP8, {}) for d in (80, 128, 256)),
    *((64, 8, 8, BF16, kept, {"window": 128, "sinks": True}) for kept in (BF16, FP8)),  # gpt-oss
    (64, 8, 8, FP32, FP32, {"sinks": True}),
    *(
        (512, heads, group, BF16, kept, {"wide": True})
        for heads, group in ((2, 8), (4, 8))
        for kept in (BF16, FP8)
    ),
    (512, 1, 8, BF16, BF16, {"wide": True}),  # Gemma 4 E2B
    (512, 1, 8, FP32, FP32, {"wide": True}),
]


@pytest.mark.parametrize(("head_dim", "kv_heads", "group", "dtype", "kv_dtype", "options"), ATTENTION)
def test_attention(
    head_dim: int,
    kv_heads: int,
    group: int,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    options: dict[str, Any],
    tmp_path: Path,
) -> None:
    options = dict(options)
    own, heads = pool(head_dim, kv_heads, kv_dtype, options.pop("wide", False)), kv_heads * group
    rows, lengths = torch.zeros(2, 16, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    q = torch.empty(300, heads + 2 * kv_heads, head_dim, dtype=dtype)[:, :heads]
    options = options | ({"sinks": torch.empty(heads, dtype=dtype)} if "sinks" in options else {})
    calls = [
        *decode_calls(q[:2], own, 1, rows, lengths[:2], **options),
        *paged_prefill_kernel.prefill_calls(q, own, 1, rows, lengths, lengths[:2], scale=0.1, **options)[1],
    ]
    compile_all(calls, tmp_path)


@pytest.mark.parametrize("head_dim", [64, 96, 128])
@pytest.mark.parametrize("kv_dtype", [BF16, FP8])
def test_two_tiles_are_on_their_way_while_one_is_computed(
    head_dim: int, kv_dtype: torch.dtype, tmp_path: Path
) -> None:
    """Else copies and products take turns. A loop waits until that many groups of copies are left, and behind
    it until none is. (More than 128 numbers a head leave no room for a third tile.)"""
    own = pool(head_dim, 2, kv_dtype)
    rows, lengths = torch.zeros(2, 16, dtype=torch.int32), torch.zeros(4, dtype=torch.int32)
    q = torch.empty(300, 12, head_dim, dtype=BF16)[:, :8]
    decode = decode_calls(q[:2], own, 1, rows, lengths[:2])[1]
    prefill = paged_prefill_kernel.prefill_calls(q, own, 1, rows, lengths, lengths[:2], scale=0.1)[1][0]
    for call, loops, an_sm in ((decode, 1, 3), (prefill, 2, 1)):
        found = facts(call, tmp_path)
        assert found.waits == [2, 0] * loops, found
        assert found.an_sm >= an_sm, found
        assert kv_dtype is FP8 or found.copies == {16}, found


@pytest.mark.parametrize("norms", ["none", "plain", "offset"])
@pytest.mark.parametrize("n", [4, 300])
@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256, 512])
def test_rope_write(head_dim: int, n: int, norms: str, tmp_path: Path) -> None:
    wide = head_dim > 256
    for dtype, kv_dtype in ((BF16, BF16), (BF16, FP8), (FP32, FP32), (FP32, FP8)):
        qkv, turn = torch.empty(n, 8, head_dim, dtype=dtype), torch.empty(n, 1, head_dim, dtype=dtype)
        positions, weight = torch.zeros(n, dtype=torch.int32), None if norms == "none" else qkv[0, 0]
        owners = None if n == 4 else positions
        calls = rope_write_kernel.rope_write_calls(
            *(qkv, turn, turn, pool(head_dim, 2, kv_dtype, wide), 1, positions[:, None], positions, owners),
            q_weight=weight,
            k_weight=weight,
            v_weight=weight if wide else None,
            eps=1e-6,
            offset=norms == "offset",
        )
        compile_all(calls, tmp_path)


@pytest.mark.parametrize("size", [640, 896, 4096, 5120, 16384])
def test_rms_norm(size: int, tmp_path: Path) -> None:
    for dtype in (BF16, FP32):
        x = torch.empty(2, size, dtype=dtype)
        for options in ({}, {"before": x}, {"after": x, "offset": True}):
            compile_all(rms_norm_kernel.rms_norm_calls(x, x[0], 1e-6, **options)[1], tmp_path)


@pytest.mark.parametrize("kind", ["silu", "gelu", "clamped"])
def test_gates(kind: str, tmp_path: Path) -> None:
    for inner in (97, 2048, 4864):
        compile_all(
            gated_kernel.gate_calls(torch.empty(2, 2 * inner, dtype=BF16), kind, 1.7, 7.0)[1], tmp_path
        )


# experts, outputs, inputs, of a token: gate and up of Qwen3 30B-A3B and Mixtral 8x7B, and what fits no tile
EXPERTS = [(128, 1536, 2048, 8), (8, 28_672, 4096, 2), (5, 97, 72, 2)]


@pytest.mark.parametrize(("experts", "outputs", "inputs", "fan"), EXPERTS)
@pytest.mark.parametrize("n", [4, 300])
def test_grouped(n: int, experts: int, outputs: int, inputs: int, fan: int, tmp_path: Path) -> None:
    for dtype in (BF16, FP16, FP32):
        for gather, biased in ((True, False), (False, False), (True, True)):
            compile_all(grouped_calls(n, (experts, outputs, inputs), fan, dtype, gather, biased), tmp_path)


def grouped_calls(
    n: int, shape: tuple[int, int, int], fan: int, dtype: torch.dtype, gather: bool, biased: bool
) -> list[Call]:
    order, starts = torch.zeros(n * fan, dtype=torch.int64), torch.zeros(shape[0] + 1, dtype=torch.int32)
    x = torch.empty(n if gather else n * fan, shape[2], dtype=dtype)
    weight = torch.empty(1, dtype=dtype).expand(shape)  # nothing is computed
    groups, bias = Groups(order, starts, fan), weight[:, :, 0] if biased else None
    return grouped_kernel.grouped_calls(x, weight, groups, bias=bias, gather=gather)[1]


# key heads, value heads, key and value dims: the defaults of Qwen3.5, relatives, and what fits no tile
DELTA = [(16, 32, 128, 128), (16, 48, 128, 128), (16, 16, 128, 128), (2, 4, 24, 20), (1, 1, 256, 64)]


@pytest.mark.parametrize("shape", DELTA)
@pytest.mark.parametrize("dtype", [BF16, FP32])
def test_delta_rule(shape: tuple[int, int, int, int], dtype: torch.dtype, tmp_path: Path) -> None:
    for calls in delta_calls(4, shape, dtype):
        compile_all(calls, tmp_path)


def delta_calls(n: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Iterator[list[Call]]:
    """A step of one token each, and chunks."""
    key_heads, heads, key_dim, value_dim = shape
    channels, ints = 2 * key_heads * key_dim + heads * value_dim, torch.zeros(n + 1, dtype=torch.int32)
    own = PagedStates.over(pool(64, 4, BF16), key_dim, value_dim)
    projected = torch.empty(n, channels + heads * value_dim, dtype=dtype)[:, :channels]
    tokens = projected, torch.empty(n, heads), torch.empty(n, heads), torch.empty(channels, 4)
    rows = torch.zeros(n, 9, dtype=torch.int32)
    yield paged_delta_kernel.decode_calls(*tokens, own, 24 * n, rows, ints[:n])[1]
    yield paged_delta_kernel.prefill_calls(*tokens, own, 24 * n, rows, ints, ints[:n])[1]


@pytest.mark.parametrize(("greedy", "filtered"), [(True, False), (False, False), (False, True)])
@pytest.mark.parametrize("vocab", [700, 262_144])
def test_sampling(vocab: int, greedy: bool, filtered: bool, tmp_path: Path) -> None:
    logits, counts = torch.empty(2, vocab, dtype=BF16), torch.zeros(1, vocab, dtype=torch.int32)
    lines = sampling_lines([{"banned": (1, 2)}, {}])
    calls = sampling_kernel.sample_calls(logits, lines, counts, greedy=greedy, filtered=filtered)[1]
    compile_all(calls, tmp_path)


def test_tables_and_counts(tmp_path: Path) -> None:
    few, wide = torch.zeros(4, dtype=torch.int32), torch.zeros(9, 700, dtype=torch.int32)
    calls: list[Callable[[], list[Call]]] = [
        lambda: row_table_kernel.learn_rows_calls(wide, few, wide[:4]),
        lambda: row_table_kernel.grow_rows_calls(wide, few, few, few),
        lambda: row_table_kernel.take_rows_calls(wide, few, few, few)[1],
        lambda: sampling_kernel.count_calls(wide, few, few, few),
        lambda: feed_kernel.feed_calls(few, few, few.long())[1],
    ]
    for made in calls:
        compile_all(made(), tmp_path)


def kinds(calls: Iterator[list[Call]]) -> dict[str, int]:
    """How many times each kernel was compiled for these launches."""
    found: dict[str, set[str]] = {}
    used: dict[str, Any] = {}
    for call in (call for made in calls for call in made):
        kernel = call.kernel.warmup(*call.arguments, grid=call.grid, **call.options)
        found.setdefault(call.kernel.__name__, set()).add(kernel.hash)
        used[call.kernel.__name__] = call.kernel
    for one in used.values():
        one.device_caches.clear()
    return {name: len(hashes) for name, hashes in found.items()}


def test_batch_sizes_layers_and_sms_compile_nothing_anew() -> None:
    """A kernel that is first wanted in service stops all streams of its model for seconds."""
    own, table = pool(64, 2, BF16), torch.zeros(300, 16, dtype=torch.int32)
    qkv, turn = torch.empty(300, 18, 64, dtype=BF16), torch.empty(300, 1, 64, dtype=BF16)
    ints, logits = torch.zeros(300, dtype=torch.int32), torch.empty(300, 700, dtype=BF16)
    x, up = torch.empty(300, 896, dtype=BF16), torch.empty(300, 2 * 96, dtype=BF16)

    def batches() -> Iterator[list[Call]]:
        for n in (1, 2, 3, 16, 17, 96, 128, 300):
            for sms in (33, 66, 132):
                q, rows = qkv[:n, :14], table[:n]
                yield decode_calls(q, own, n % 2, rows, ints[:n], sms)
            yield paged_prefill_kernel.prefill_calls(q, own, n % 2, rows, ints[: n + 1], ints[:n], scale=0.1)[
                1
            ]
            yield rope_write_kernel.rope_write_calls(
                qkv[:n], turn[:n], turn[:n], own, n % 2, rows, ints[:n], None
            )
            yield rms_norm_kernel.rms_norm_calls(x[:n], x[0], 1e-6)[1]
            yield gated_kernel.gate_calls(up[:n], "silu")[1]
            yield grouped_calls(n, (16, 96, 64), 4, BF16, gather=True, biased=False)
            yield feed_kernel.feed_calls(ints[:n], ints[:n], ints.long())[1]
            yield from delta_calls(n, (2, 4, 32, 32), BF16)
            yield row_table_kernel.grow_rows_calls(table, ints[:n], ints[:n], ints[:n])
            yield row_table_kernel.take_rows_calls(table, ints[:n], ints[:n], ints[:n])[1]
            yield row_table_kernel.learn_rows_calls(table, ints[:n], table[:n])
            yield sampling_kernel.count_calls(table, ints[:n], ints[:n], ints[:n])
            lines = sampling_lines([{}] * n)
            yield sampling_kernel.sample_calls(
                logits[:n], lines, torch.zeros(1, 700, dtype=torch.int32), greedy=True, filtered=False
            )[1]

    found = kinds(batches())
    assert found.pop("_grouped") == 2, "of decode steps, and of prompts"
    assert found.pop("_rule") == 2, "of one token each, and of chunks"
    assert set(found.values()) == {1}, found


def test_constants_of_a_shape_are_worked_out_once() -> None:
    """An eager prefill has five launches a layer, and between two of them the device waits for the host."""
    own, table = pool(64, 2, BF16), torch.zeros(20, 16, dtype=torch.int32)
    qkv, turn = torch.empty(20, 18, 64, dtype=BF16), torch.empty(20, 1, 64, dtype=BF16)
    x, ints = torch.empty(20, 896, dtype=BF16), torch.zeros(20, dtype=torch.int32)

    def layer(n: int, number: int) -> list[Call]:
        q, rows = qkv[:n], table[:n]
        return [
            *rms_norm_kernel.rms_norm_calls(x[:n], x[0], 1e-6)[1],
            *rope_write_kernel.rope_write_calls(q, turn[:n], turn[:n], own, number, rows, ints[:n], ints[:n]),
            *paged_prefill_kernel.prefill_calls(
                q[:, :14], own, number, rows, ints[: n + 1], ints[:n], scale=1
            )[1],
            *gated_kernel.gate_calls(x[:n], "silu")[1],
        ]

    for first, other in zip(layer(4, 0), layer(19, 1), strict=True):
        assert first.options is other.options, first.kernel


def test_long_lists_of_banned_tokens_compile_nothing_anew() -> None:
    logits, counts = torch.empty(2, 700, dtype=BF16), torch.zeros(1, 700, dtype=torch.int32)

    def widths() -> Iterator[list[Call]]:
        for width in (1, 8, 16, 33, 64):
            lines = sampling_lines([{"banned": tuple(range(width))}, {}])
            yield sampling_kernel.sample_calls(logits, lines, counts, greedy=False, filtered=False)[1]

    assert kinds(widths()) == {"_adjust": 1, "_weigh": 1, "_pick": 1}
