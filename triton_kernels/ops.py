"""The operations of a paged model step, each for the device of its tensors: the one place that dispatches.

Beside every reference ``<name>.py`` lies ``<name>_kernel.py`` with functions of the same names and arguments;
on CUDA tensors the kernel runs, on others the reference. Shapes and meaning are told in the reference. Triton
is imported by the first call on a device, never on a CPU. Nothing here waits for the device: every operation
can be captured in a CUDA graph.
"""

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

from torch import Tensor

from muxd.kernels import feed as feeding
from muxd.kernels import (
    gated,
    grouped,
    paged_decode,
    paged_delta,
    paged_prefill,
    rope_write,
    row_table,
    sampling,
)
from muxd.kernels import rms_norm as norm
from muxd.kernels.grouped import Groups
from muxd.kernels.paged_decode import AN_SM, DecodePlan
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.paged_states import PagedStates
from muxd.kernels.sampling import SamplingLines


def _for(tensor: Tensor, reference: ModuleType) -> Any:
    return _kernels(reference) if tensor.is_cuda else reference


@cache
def _kernels(reference: ModuleType) -> ModuleType:
    return import_module(f"{reference.__name__}_kernel")


def plan_decode(
    lengths: Tensor, kv_heads: int, *, window: int | None = None, programs: int = AN_SM
) -> DecodePlan:
    """See ``paged_decode``. ``programs``: ``paged_decode.AN_SM`` for each SM that the step has."""
    module = _for(lengths, paged_decode)
    found: DecodePlan = module.plan_decode(lengths, kv_heads, window=window, programs=programs)
    return found


def decode_attention(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    lengths: Tensor,
    plan: DecodePlan,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``paged_decode``."""
    found: Tensor = _for(q, paged_decode).decode_attention(
        q, pool, layer, rows, lengths, plan, scale=scale, window=window, softcap=softcap, sinks=sinks
    )
    return found


def prefill_attention(
    q: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    starts: Tensor,
    cached: Tensor,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """See ``paged_prefill``."""
    found: Tensor = _for(q, paged_prefill).prefill_attention(
        q, pool, layer, rows, starts, cached, scale=scale, window=window, softcap=softcap, sinks=sinks
    )
    return found


def rope_and_write(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    pool: PagedPool,
    layer: int,
    rows: Tensor,
    positions: Tensor,
    owners: Tensor | None = None,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    v_weight: Tensor | None = None,
    eps: float = 0.0,
    offset: bool = False,
) -> Tensor:
    """See ``rope_write``."""
    weights = {"q_weight": q_weight, "k_weight": k_weight, "v_weight": v_weight}
    module = _for(qkv, rope_write)
    found: Tensor = module.rope_write(
        qkv, cos, sin, pool, layer, rows, positions, owners, **weights, eps=eps, offset=offset
    )
    return found


def rms_norm(
    x: Tensor,
    weight: Tensor,
    eps: float,
    *,
    offset: bool = False,
    before: Tensor | None = None,
    after: Tensor | None = None,
) -> Tensor:
    """See ``rms_norm.rms_norm``."""
    found: Tensor = _for(x, norm).rms_norm(x, weight, eps, offset=offset, before=before, after=after)
    return found


def silu_gate(gate_up: Tensor) -> Tensor:
    """See ``gated``."""
    found: Tensor = _for(gate_up, gated).silu_gate(gate_up)
    return found


def clamped_gate(gate_up: Tensor, alpha: float, limit: float) -> Tensor:
    """See ``gated``."""
    found: Tensor = _for(gate_up, gated).clamped_gate(gate_up, alpha, limit)
    return found


def gelu_tanh_gate(gate_up: Tensor) -> Tensor:
    """See ``gated``."""
    found: Tensor = _for(gate_up, gated).gelu_tanh_gate(gate_up)
    return found


def grouped_linear(
    x: Tensor, weight: Tensor, groups: Groups, *, bias: Tensor | None = None, gather: bool = False
) -> Tensor:
    """See ``grouped``."""
    found: Tensor = _for(x, grouped).grouped_linear(x, weight, groups, bias=bias, gather=gather)
    return found


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
    """See ``paged_delta``."""
    module = _for(mixed, paged_delta)
    found: Tensor = module.delta_decode(mixed, decay, beta, conv, states, first, rows, positions)
    return found


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
    """See ``paged_delta``."""
    module = _for(mixed, paged_delta)
    found: Tensor = module.delta_prefill(mixed, decay, beta, conv, states, first, rows, starts, cached)
    return found


def feed(tokens: Tensor, positions: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """See ``feed``."""
    found: tuple[Tensor, Tensor] = _for(tokens, feeding).feed(tokens, positions, before)
    return found


def sample(
    logits: Tensor,
    lines: SamplingLines,
    counts: Tensor,
    *,
    greedy: bool = False,
    filtered: bool = True,
    out: Tensor | None = None,
    room: Tensor | None = None,
) -> Tensor:
    """See ``sampling``."""
    module = _for(logits, sampling)
    found: Tensor = module.sample(logits, lines, counts, greedy=greedy, filtered=filtered, out=out, room=room)
    return found


def count_tokens(counts: Tensor, slots: Tensor, tokens: Tensor, generated: Tensor) -> None:
    """See ``sampling``."""
    _for(counts, sampling).count_tokens(counts, slots, tokens, generated)


def learn_rows(table: Tensor, ids: Tensor, blocks: Tensor) -> None:
    """See ``row_table``."""
    _for(table, row_table).learn_rows(table, ids, blocks)


def grow_rows(rows: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> None:
    """See ``row_table``."""
    _for(rows, row_table).grow_rows(rows, lines, columns, ids)


def take_rows(lists: Tensor, lines: Tensor, columns: Tensor, ids: Tensor) -> Tensor:
    """See ``row_table``."""
    found: Tensor = _for(lists, row_table).take_rows(lists, lines, columns, ids)
    return found
