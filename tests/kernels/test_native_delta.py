"""The native step's delta rule by itself against the reference, over states in a pool: as compiled for this
CPU, and for the least that is served."""

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.delta_cases import DeltaPool, DeltaShape, check_states, delta_pool, delta_tokens
from support.examples import examples
from support.kernel_cases import check
from torch import Tensor

from muxd.kernels import native, paged_delta
from muxd.kernels.delta_rule import gated_norm
from muxd.kernels.native import LinearFields, LinearShape, MatrixFields, PoolFields

LEAST, EPS = "x86-64-v3", 1e-6

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing())


@pytest.fixture(scope="module", params=["native", LEAST])
def rule(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> "ctypes._NamedFuncPointer":
    source, made = Path(__file__).with_name("delta_case.cpp"), tmp_path_factory.mktemp("delta") / "case.so"
    compiler = native.found_compiler()
    assert compiler is not None
    command = native.compiling(compiler, request.param, source, made)
    subprocess.run([*command, f"-I{native.SOURCE}"], check=True)
    found = ctypes.CDLL(str(made)).delta_case
    found.restype = None
    return found


def check_native(
    rule: "ctypes._NamedFuncPointer",
    shape: DeltaShape,
    chunks: list[tuple[int, int]],
    threads: int = 2,
    seed: int = 0,
) -> None:
    """Chunks (cached, new tokens), of one token as in a decode step, too."""
    generator = torch.Generator().manual_seed(seed)
    pool = delta_pool(shape, [cached > 0 for cached, _ in chunks], generator)
    total, heads, width = sum(n for _, n in chunks), shape.heads, pool.rows.shape[1] - 1
    tokens, copy = delta_tokens(shape, total, generator), pool.copied()
    z = torch.randn(total, heads * shape.value_dim, generator=generator)
    a, b = (torch.randn(total, heads, generator=generator) * 4 for _ in range(2))
    rate, bias = -torch.rand(heads, generator=generator) * 2, torch.randn(heads, generator=generator)
    norm = torch.randn(shape.value_dim, generator=generator)

    found = torch.full((total, heads * shape.value_dim), float("nan"))
    conv = torch.zeros(shape.kernel, -(-shape.net.channels // 16) * 16)
    conv[:, : shape.net.channels] = tokens.conv.T
    state, mixed = pool.rows[:, :width].contiguous(), tokens.mixed.contiguous()
    starts, counts = (np.array(part, dtype=np.int32) for part in zip(*chunks, strict=True))
    parts = [x.data_ptr() for x in (conv, rate, bias, norm)]
    fields = LinearFields(*[MatrixFields()] * 6, *parts, pool.first)
    rule(
        *(ctypes.byref(x) for x in (_shape(shape, width), fields, _pool(shape, pool))),
        *(len(chunks), *(ctypes.c_void_p(x.ctypes.data) for x in (starts, counts))),
        *(ctypes.c_void_p(state.data_ptr()), ctypes.c_float(EPS), threads),
        *(ctypes.c_void_p(x.data_ptr()) for x in (mixed, z, b, a, found)),
    )
    wanted = _wanted(copy, tokens.mixed, rate * F.softplus(a + bias), torch.sigmoid(b), tokens.conv, chunks)
    gated = gated_norm(wanted.view(total, heads, -1), z.view(total, heads, -1), norm, EPS)
    check(found, gated.flatten(1), torch.float32)
    check_states(pool.states.floats, copy.states.floats)


def _shape(shape: DeltaShape, width: int) -> LinearShape:
    layout = shape.layout
    sizes = shape.key_heads, shape.heads, shape.key_dim, shape.value_dim, shape.kernel
    return LinearShape(*sizes, width, shape.per_row, layout.lines, layout.head_blocks)


def _pool(shape: DeltaShape, pool: DeltaPool) -> PoolFields:
    states = pool.states
    return PoolFields(states.floats.data_ptr(), shape.block_bytes, states.table.data_ptr(), 0, 0)


def _wanted(
    pool: DeltaPool, mixed: Tensor, decay: Tensor, beta: Tensor, conv: Tensor, chunks: list[tuple[int, int]]
) -> Tensor:
    ends = torch.tensor([n for _, n in chunks]).cumsum(0).tolist()
    starts, cached = (torch.tensor(x, dtype=torch.int32) for x in ([0, *ends], [c for c, _ in chunks]))
    tokens = mixed, decay, beta, conv
    return paged_delta.delta_prefill(*tokens, pool.states, pool.first, pool.rows, starts, cached)


@pytest.mark.parametrize("threads", [1, 3])
def test_decode_rows_and_chunks_in_one_batch(rule: "ctypes._NamedFuncPointer", threads: int) -> None:
    chunks = [(9, 1), (0, 1), (0, 70), (7, 2), (5, 3), (1, 1), (3, 20)]
    check_native(rule, DeltaShape(2, 2, key_dim=32, value_dim=32), chunks, threads)


@pytest.mark.parametrize(
    "shape",
    [
        DeltaShape(1, 2, key_dim=128, value_dim=128, block_bytes=8192, per_row=32),  # as published
        DeltaShape(2, 3, key_dim=24, value_dim=20, block_bytes=4096 + 16),  # blocks end within a line
        DeltaShape(1, 1, key_dim=7, value_dim=100, block_bytes=400 + 16, per_row=1),  # one line a block
        DeltaShape(
            3, 1, key_dim=100, value_dim=80, kernel=2
        ),  # tiles of several widths, channels of several pieces
    ],
)
def test_sizes(rule: "ctypes._NamedFuncPointer", shape: DeltaShape) -> None:
    check_native(rule, shape, [(4, 1), (0, 9), (2, 5)])


SHAPES = st.builds(
    DeltaShape,
    key_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    key_dim=st.integers(1, 70),
    value_dim=st.integers(1, 150),
    kernel=st.integers(2, 6),
    block_bytes=st.integers(38, 120).map(lambda n: 16 * n),
    per_row=st.integers(1, 9),
)


@settings(max_examples=examples(40))
@given(
    SHAPES,
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 12)), min_size=1, max_size=4),
    st.integers(0, 99),
)
def test_any_shape(
    rule: "ctypes._NamedFuncPointer", shape: DeltaShape, chunks: list[tuple[int, int]], seed: int
) -> None:
    check_native(rule, shape, chunks, seed=seed)
