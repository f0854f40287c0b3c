"""Inputs for the device kernels and what their references make of them, in the interpreter and on a GPU.

Whatever a kernel must not read is poison: slots past a sequence's end and before its window are NaN, row
ids past its last row, before its window and of padding lines name no row.
"""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from muxd.kernels import gated, grouped, paged_decode, paged_prefill, rope_write, sampling
from muxd.kernels import rms_norm as norm
from muxd.kernels.paged_pool import PagedPool
from muxd.kernels.rotary import angles
from muxd.kernels.row_layout import KvHeads, RowLayout, laid_out, uniform
from muxd.kernels.sampling import SamplingLines

BLOCK_BYTES = 8192
NO_ROW = 2**30
CLOSE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"atol": 2e-5, "rtol": 2e-5},
    torch.float16: {"atol": 2e-3, "rtol": 4e-3},
    torch.bfloat16: {"atol": 1.6e-2, "rtol": 1.6e-2},
}


@dataclass
class Shape:
    """What the attention cases vary."""

    head_dim: int
    kv_heads: int
    group: int
    dtype: torch.dtype = torch.float32
    window: int | None = None
    softcap: float | None = None
    sunk: bool = False
    kv_dtype: torch.dtype | None = None
    device: str = "cpu"
    layers: int = 2
    block_bytes: int = BLOCK_BYTES
    wide: bool = False  # heads twice as wide as the other layers'
    reads: bool = False  # layer 1 reads the keys and values of layer 0

    @property
    def layout(self) -> RowLayout:
        if not (self.wide or self.reads):
            return uniform(self.layers, self.kv_heads, self.head_dim)
        own = KvHeads(self.kv_heads, self.head_dim)
        narrow = KvHeads(3, self.head_dim // 2 if self.wide else self.head_dim)
        return laid_out((own, own._replace(of=0), narrow) if self.reads else (narrow, own, narrow))

    @property
    def options(self) -> dict[str, Any]:
        sinks = torch.linspace(-3, 4, self.kv_heads * self.group, device=self.device) if self.sunk else None
        own = None if sinks is None else sinks.to(self.dtype)
        return {
            "scale": self.head_dim**-0.5, "window": self.window, "softcap": self.softcap, "sinks": own,
        }  # fmt: skip


def paged(
    shape: Shape, lengths: list[int], generator: torch.Generator, seen_from: list[int] | None = None
) -> tuple[PagedPool, Tensor]:
    """A pool whose layer 1 holds keys and values of ``lengths``, or of the tokens from ``seen_from`` on, rows
    in random order, the rest poison."""
    dtype = shape.kv_dtype or shape.dtype
    layout, at = shape.layout, shape.layout.layers[1]
    tokens = shape.block_bytes // (2 * layout.head_dim * dtype.itemsize)
    counts = [-(-length // tokens) for length in lengths]
    total, width = max(1, sum(counts)), layout.blocks
    blocks = torch.full((total * width, shape.block_bytes // dtype.itemsize), float("nan")).to(dtype)
    table = torch.randperm(total * width, generator=generator).int().view(total, width)
    pool = PagedPool(blocks, table, layout)
    rows = torch.full((len(lengths), max(counts) + 1), NO_ROW, dtype=torch.int32)
    order, slots = torch.randperm(total, generator=generator).int(), pool.slots(1)
    for i, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        rows[i, :count], order = order[:count], order[count:]
        begin = seen_from[i] if seen_from else 0
        for token in range(begin, length):
            own = table[int(rows[i, token // tokens])].long()
            for columns, slot in ((at.keys, 0), (at.values, at.value_slot(tokens))):
                value = torch.randn(shape.kv_heads, shape.head_dim, generator=generator)
                slots[own[columns], token % tokens + slot] = value.to(dtype)
        rows[i, : begin // tokens] = NO_ROW
    placed = PagedPool(blocks.to(shape.device), table.to(shape.device), layout)
    return placed, rows.to(shape.device)


def _seen_from(shape: Shape, length: int) -> int:
    """The first token that the last of ``length`` sees."""
    return 0 if shape.window is None else max(0, length - shape.window)


def check(found: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    """Equal within the rounding of ``dtype``."""
    torch.testing.assert_close(found.float().cpu(), wanted.float().cpu(), **CLOSE[dtype])


def check_decode(kernel: ModuleType, shape: Shape, lengths: list[int], programs: int, seed: int = 0) -> None:
    """``kernel``'s decode attention against the reference, queries a slice of a wider projection; twice, as
    two layers of one step."""
    generator = torch.Generator().manual_seed(seed)
    pool, rows = paged(shape, lengths, generator, [_seen_from(shape, length) for length in lengths])
    heads = shape.kv_heads * shape.group
    wide = torch.randn(len(lengths), heads + 3, shape.head_dim, generator=generator)
    q = wide.to(shape.dtype).to(shape.device)[:, :heads]
    known = torch.tensor(lengths, dtype=torch.int32, device=shape.device)
    cut: dict[str, Any] = {"window": shape.window, "programs": programs}
    plan = kernel.plan_decode(known, shape.kv_heads, **cut)
    own = paged_decode.plan_decode(known, shape.kv_heads, **cut)
    assert torch.equal(plan.ends, own.ends)
    assert plan.most == own.most >= int(plan.ends[-2])
    wanted = paged_decode.decode_attention(q, pool, 1, rows, known, own, **shape.options)
    for _ in range(2):
        found = kernel.decode_attention(q, pool, 1, rows, known, plan, **shape.options)
        check(found, wanted, shape.dtype)
        assert not found[[i for i, length in enumerate(lengths) if not length]].any()
        assert not plan.arrived.any(), "the next layer counts from 0"


def check_prefill(kernel: ModuleType, shape: Shape, chunks: list[tuple[int, int]], seed: int = 0) -> None:
    """``kernel``'s prefill attention against the reference; chunks are (cached, new tokens), with padding
    tokens behind the last one."""
    generator = torch.Generator().manual_seed(seed)
    seen_from = [_seen_from(shape, cached + 1) for cached, _ in chunks]
    pool, rows = paged(shape, [cached + n for cached, n in chunks], generator, seen_from)
    heads, total = shape.kv_heads * shape.group, sum(n for _, n in chunks)
    q = torch.randn(total + 3, heads, shape.head_dim, generator=generator).to(shape.dtype).to(shape.device)
    starts = torch.tensor([0, *torch.tensor([n for _, n in chunks]).cumsum(0).tolist()], dtype=torch.int32)
    cached = torch.tensor([cached for cached, _ in chunks], dtype=torch.int32)
    places = (rows, starts.to(shape.device), cached.to(shape.device))
    found = kernel.prefill_attention(q, pool, 1, *places, **shape.options)
    wanted = paged_prefill.prefill_attention(q, pool, 1, *places, **shape.options)
    check(found[:total], wanted[:total], shape.dtype)


def check_rope_write(
    kernel: ModuleType,
    shape: Shape,
    positions: list[int],
    owners: list[int] | None,
    norms: bool,
    offset: bool,
    values: bool = False,
) -> None:
    """Queries and the whole pool against the reference. Owners None: token i belongs to line i.
    ``values``: they are normalised, too."""
    generator = torch.Generator().manual_seed(len(positions))
    lines = len(positions) if owners is None else max(owners) + 1
    reach = [0] * lines
    for i, position in enumerate(positions):
        owner = i if owners is None else owners[i]
        reach[owner] = max(reach[owner], position + 1)
    pool, rows = paged(shape, reach, generator)
    copy = PagedPool(pool.blocks.clone(), pool.table, pool.layout)
    heads = shape.kv_heads * (shape.group + (2 if pool.layer(1).own else 0))
    wide = torch.randn(len(positions), heads, shape.head_dim, generator=generator) * 3
    qkv = wide.to(shape.dtype).to(shape.device)
    asked = (norms, norms, values)
    weights = [torch.randn(shape.head_dim, generator=generator).to(qkv) if one else None for one in asked]
    at = torch.tensor(positions, dtype=torch.int32, device=shape.device)
    turn = angles(at, torch.rand(shape.head_dim // 2, generator=generator).to(shape.device), shape.dtype)
    whose = None if owners is None else torch.tensor(owners, dtype=torch.int32, device=shape.device)
    named = zip(("q_weight", "k_weight", "v_weight"), weights, strict=True)
    options: dict[str, Any] = dict(named) | {"eps": 1e-6, "offset": offset}
    wanted = rope_write.rope_write(qkv.clone(), *turn, copy, 1, rows, at, whose, **options)
    found = kernel.rope_write(qkv, *turn, pool, 1, rows, at, whose, **options)
    check(found, wanted, shape.dtype)
    kept, expected = (p.slots(1).float().cpu() for p in (pool, copy))
    assert torch.equal(kept.isnan(), expected.isnan())
    fp8: dict[str, Any] = {"atol": 0.02, "rtol": 0.13}  # a tie of float32 roundings may land one step apart
    close = fp8 if shape.kv_dtype is torch.float8_e4m3fn else CLOSE[shape.dtype]
    torch.testing.assert_close(kept.nan_to_num(), expected.nan_to_num(), **close)


def check_rms_norm(
    kernel: ModuleType, n: int, size: int, dtype: torch.dtype, offset: bool, device: str = "cpu"
) -> None:
    """All four uses: alone, residual before, residual after, and on a slice."""
    generator = torch.Generator().manual_seed(size)
    x, residual = (torch.randn(n, size, generator=generator).to(dtype).to(device) for _ in range(2))
    weight = torch.randn(size, generator=generator).to(dtype).to(device)
    streams = residual.clone(), residual.clone()
    wide = torch.cat((x, residual), 1)[:, :size]
    for line in (x, wide):
        found = kernel.rms_norm(line, weight, 1e-6, offset=offset)
        check(found, norm.rms_norm(line, weight, 1e-6, offset=offset), dtype)
    found = kernel.rms_norm(x, weight, 1e-6, offset=offset, before=streams[0])
    check(found, norm.rms_norm(x, weight, 1e-6, offset=offset, before=streams[1]), dtype)
    assert torch.equal(streams[0], streams[1])
    found = kernel.rms_norm(x, weight, 1e-6, offset=offset, after=residual)
    check(found, norm.rms_norm(x, weight, 1e-6, offset=offset, after=residual), dtype)


def check_gates(kernel: ModuleType, n: int, inner: int, dtype: torch.dtype, device: str = "cpu") -> None:
    """Both activations, also far out, where their exponentials overflow."""
    both = torch.randn(n, 2 * inner, generator=torch.Generator().manual_seed(inner)) * 4
    both[0, :2] = torch.tensor([200.0, -200.0])
    both = both.to(dtype).to(device)
    for name in ("silu_gate", "gelu_tanh_gate"):
        wanted = getattr(gated, name)(both.double()).to(dtype)
        check(getattr(kernel, name)(both), wanted, dtype)
    wanted = gated.clamped_gate(both.double(), 1.702, 7.0).to(dtype)
    check(kernel.clamped_gate(both, 1.702, 7.0), wanted, dtype)


def check_grouped(
    kernel: ModuleType,
    n: int,
    fan: int,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Both products of a mixture for ``n`` tokens; ``shape``: experts, outputs, inputs. What lies behind the
    rows of ``x`` is poison, and so are the weights of experts that nobody chose."""
    generator = torch.Generator().manual_seed(seed)
    experts, outputs, inputs = shape
    favour = torch.rand(experts, generator=generator) ** 3  # some are chosen by many, some by none
    scores = torch.rand(n, experts, generator=generator) * favour
    groups = grouped.group(scores.topk(fan, -1).indices, experts)
    weight = torch.randn(shape, generator=generator) / inputs**0.5
    weight[groups.starts.diff() == 0] = float("nan")
    weight, bias = weight.to(dtype).to(device), torch.randn(experts, outputs, generator=generator).to(dtype)
    groups = groups._replace(order=groups.order.to(device), starts=groups.starts.to(device))
    for gather, added in ((True, None), (False, bias.to(device))):
        rows = n if gather else n * fan
        wide = torch.full((rows, inputs + 5), float("nan"))
        wide[:, :inputs] = torch.randn(rows, inputs, generator=generator)
        x = wide.to(dtype).to(device)[:, :inputs]
        found = kernel.grouped_linear(x, weight, groups, bias=added, gather=gather)
        # oneDNN's AMX product reads past rows of an odd number of bfloat16, and zero times poison is poison.
        whole = x.contiguous()
        check(found, grouped.grouped_linear(whole, weight, groups, bias=added, gather=gather), dtype)


def sampling_lines(params: list[dict[str, Any]], device: str = "cpu") -> SamplingLines:
    """Lines from dictionaries of what differs from a plain argmax."""
    widest = max([1, *(len(p.get("banned", ())) for p in params)])

    def column(name: str, default: float, dtype: torch.dtype) -> Tensor:
        return torch.tensor([p.get(name, default) for p in params], dtype=dtype, device=device)

    banned = [[*p.get("banned", ()), *[-1] * (widest - len(p.get("banned", ())))] for p in params]
    seeds = [(p.get("seed", 0) + 2**63) % 2**64 - 2**63 for p in params]
    return SamplingLines(
        temperature=column("temperature", 0.0, torch.float32),
        top_k=column("top_k", 0, torch.int32),
        top_p=column("top_p", 1.0, torch.float64),
        min_p=column("min_p", 0.0, torch.float64),
        presence=column("presence", 0.0, torch.float32),
        frequency=column("frequency", 0.0, torch.float32),
        repetition=column("repetition", 1.0, torch.float32),
        seed=torch.tensor(seeds, dtype=torch.int64, device=device),
        position=column("position", 0, torch.int32),
        free_from=column("free_from", 0, torch.int32),
        banned=torch.tensor(banned, dtype=torch.int32, device=device),
        slot=column("slot", -1, torch.int32),
    )


def check_sample(
    kernel: ModuleType, logits: Tensor, params: list[dict[str, Any]], shortlist: int = sampling.SHORTLIST
) -> None:
    """Tokens and counts against the reference, with four slots of counts filled before."""
    device, vocab = logits.device.type, logits.shape[1]
    generator = torch.Generator().manual_seed(vocab)
    seen = torch.randint(0, vocab, (60,), generator=generator)
    slots = torch.randint(-1, 4, (60,), generator=generator).int()
    generated = torch.randint(0, 2, (60,), generator=generator).int()
    counts = [torch.zeros(4, vocab, dtype=torch.int32, device=device) for _ in range(2)]
    for module, own in zip((kernel, sampling), counts, strict=True):
        module.count_tokens(own, slots.to(device), seen.to(device), generated.to(device))
    assert torch.equal(counts[0], counts[1])
    lines = sampling_lines(params, device)
    room = torch.full((len(params) + 1, vocab), float("nan"), device=device)
    found = kernel.sample(logits, lines, counts[0], shortlist=shortlist, room=room)
    assert room[-1].isnan().all()
    assert not room[:-1].isnan().any(), "the adjusted logits lie there"
    wanted = sampling.sample(logits, lines, counts[1])
    assert found.tolist() == wanted.tolist()
    assert torch.equal(counts[0], counts[1])
