"""What ``Call.run`` keeps of a launch is what Triton finds by looking at every argument again."""

import importlib.util
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from support.hopper import Launch, hopper
from triton._C.libtriton import native_specialize_impl
from triton.backends.nvidia.compiler import CUDABackend

from muxd.kernels import gated_kernel, paged_prefill_kernel, rms_norm_kernel, rope_write_kernel
from muxd.kernels.launch import Call, Constants, _kind
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.row_layout import KvHeads, laid_out

BF16 = torch.bfloat16
Told = list[Launch]


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    launches: Told = []
    with hopper(launches.append):
        yield launches
        for kernel in (
            gated_kernel._gate, paged_prefill_kernel._prefill, rms_norm_kernel._rms_norm,
            rope_write_kernel._rope_write,
        ):  # fmt: skip
            kernel.device_caches.clear()  # nothing compiled for the pretended device stays


def layer(tokens: int, number: int = 0, late: int = 0, dtype: torch.dtype = BF16) -> list[Call]:
    """A layer's launches over a prompt of so many tokens. ``late``: how many elements behind a multiple of 16
    bytes its activations begin."""
    own = KvHeads(2, 64)
    layout = laid_out((own, own))
    memory = torch.empty(64 * 8192, dtype=torch.uint8)
    pool = PagedPool.over(memory, 8192, torch.zeros(8, layout.blocks, dtype=torch.int32), layout, dtype)
    many, rows = torch.zeros(tokens + 1, dtype=torch.int32), torch.zeros(2, 16, dtype=torch.int32)
    ints, turn = many[:tokens], torch.empty(tokens, 1, 64, dtype=dtype)
    qkv = _late(tokens * 18 * 64, late, dtype).view(tokens, 18, 64)
    x, weight = _late(tokens * 896, late, dtype).view(tokens, 896), torch.empty(896, dtype=dtype)
    q = qkv[:, :14]
    return [
        *rms_norm_kernel.rms_norm_calls(x, weight, 1e-6)[1],
        *rope_write_kernel.rope_write_calls(qkv, turn, turn, pool, number, rows, ints, ints),
        *paged_prefill_kernel.prefill_calls(q, pool, number, rows, many[:3], many[:2], scale=0.1)[1],
        *gated_kernel.gate_calls(x, "silu")[1],
    ]


def _late(count: int, late: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(count + late, dtype=dtype)[late:]


def by_triton(call: Call, told: Told) -> Launch:
    """Without what is kept."""
    call._replace(options=dict(call.options)).run()
    return told.pop()


def same(one: Launch, other: Launch) -> bool:
    """Tensors by where they are."""

    def plain(argument: Any) -> Any:
        return argument.data_ptr() if isinstance(argument, torch.Tensor) else argument

    return one[:3] == other[:3] and [*map(plain, one.arguments)] == [*map(plain, other.arguments)]


def kept(call: Call) -> int:
    assert isinstance(call.options, Constants)
    return len(call.options.compiled)


@pytest.mark.compile
@pytest.mark.smoke
def test_the_second_launch_is_what_triton_would_launch(told: Told) -> None:
    for tokens, number in ((5, 0), (5, 1), (16, 1)):
        for call in layer(tokens, number):
            call.run()
            before, first = kept(call), told.pop()
            call.run()
            assert kept(call) == before > 0, "the second is not looked at again"
            assert same(told[-1], first)
            assert same(told.pop(), by_triton(call, told))


@pytest.mark.compile
def test_another_start_or_type_is_another_kernel(told: Told) -> None:
    functions = []
    for late, dtype in ((0, BF16), (1, BF16), (8, BF16), (0, torch.float16), (1, torch.float16)):
        call = layer(4, late=late, dtype=dtype)[0]
        for _ in range(2):
            call.run()
            assert same(told[-1], by_triton(call, told))
            functions.append(told.pop().function)
    plain, unaligned, eight, *halves = functions[::2]
    assert plain == eight != unaligned
    assert len({plain, unaligned, *halves}) == 4


NUMBERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.builds(
        lambda edge, by: edge + by,
        st.sampled_from([0, 2**31, -(2**31), 2**32, 2**63 - 20]),
        st.integers(-17, 17),
    ),
    st.floats(),
    st.booleans(),
    st.none(),
)


@given(one=NUMBERS, other=NUMBERS)
def test_numbers_of_a_kind_are_of_a_kind_to_triton(one: object, other: object) -> None:
    if _kind(one) == _kind(other):
        assert by_its_own_rules(one) == by_its_own_rules(other)


def by_its_own_rules(number: object) -> object:
    return native_specialize_impl(CUDABackend, number, False, True, True)
