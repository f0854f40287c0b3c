"""Head blocks scattered over ever more memory: what translating their addresses costs decode attention.

    python benchmarks/probe_addresses.py --out F.jsonl [--dry]

The same contexts each time; only the pool they lie in grows. Has not run on a GPU.
"""

from functools import partial

import torch
from probe import Probe, main
from probe_decode import launched
from roofline_kernels import BLOCK_BYTES, MODELS, SMALL, filled_pool
from torch import Tensor

from muxd.kernels.paged_decode import AN_SM, DecodePlan
from muxd.kernels.paged_pool import PagedPool

_GIB = (4, 16, 64)


def addresses(probe: Probe) -> None:
    model, batch, context, layers = (SMALL, 2, 40, 2) if probe.dry else (MODELS[3], 32, 2048, 8)
    near, rows = filled_pool(model, probe.device, batch, context, layers, probe.dtype)
    q, known = probe.random(batch, model.heads, model.head_dim), probe.numbers([context] * batch)
    from muxd.kernels import paged_decode_kernel

    plan = paged_decode_kernel.plan_decode(known, model.kv_heads, programs=132 * AN_SM)
    for gib in (0,) if probe.dry else (0, *_GIB):
        pool = near if not gib else _wide(near, (gib << 30) // BLOCK_BYTES)
        step = partial(_step, pool, q, rows, known, model.head_dim**-0.5, plan)
        held = round(pool.blocks.numel() * pool.blocks.element_size() / 2**30, 2)
        probe.time({"pool_gib": held}, step, layers, batch * context * model.kv_bytes)
        del pool, step


def _step(
    pool: PagedPool, q: Tensor, rows: Tensor, known: Tensor, scale: float, plan: DecodePlan, layer: int
) -> Tensor:
    from muxd.kernels import paged_decode_kernel

    return launched(paged_decode_kernel.decode_calls(q, pool, layer, rows, known, plan, scale=scale))


def _wide(near: PagedPool, count: int) -> PagedPool:
    """As many blocks as ``near`` uses, anywhere among ``count``."""
    device = near.blocks.device
    blocks = torch.empty(count, near.blocks.shape[1], dtype=near.blocks.dtype, device=device)
    table = torch.randperm(count, device=device)[: near.table.numel()].to(torch.int32).view(near.table.shape)
    for part in table.flatten().long().split(1 << 16):  # not what lay there: numbers, and none that are NaN
        blocks[part] = torch.randn(len(part), blocks.shape[1], device=device).to(blocks.dtype)
    return PagedPool(blocks, table, near.layout)


if __name__ == "__main__":
    main({"addresses": addresses}, __doc__)
