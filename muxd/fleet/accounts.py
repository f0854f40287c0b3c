"""A model's account in the pool, its lane in the scheduler and what its workers are told: from its folder and
muxd.toml."""

from msgspec import structs

from muxd.config import running
from muxd.cost.shares import equal_part
from muxd.device.base import Device, is_gpu
from muxd.engine.lane import LaneSpec
from muxd.engine.memory import Terms
from muxd.errors import ModelFolderError
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import load_of
from muxd.messages import Phases, Setup
from muxd.placement.memory import Budget, scratch
from muxd.pool.arena import Arena
from muxd.sizes import size

_PHASES: tuple[Phases, ...] = ("both", "prefill", "decode")


def terms(entry: Entry, arena: Arena) -> Terms:
    """What an opened entry's configuration asks of the pool. Raises ConfigError naming the setting."""
    assert entry.opened is not None
    quota = entry.quota
    least, most = (
        size(text, key=f"model.quota.{key} ({entry.name})", whole=arena.nbytes) // arena.block_bytes
        for key, text in (("min", quota.min), ("max", quota.max))
    )
    return Terms(least, most, max_rows=max(1, arena.most_blocks // entry.opened.spec.blocks_per_row))


def open_account(entry: Entry, arena: Arena) -> None:
    """Open the ledger account of an opened entry, before there is a scheduler.

    Raises ModelFolderError where no token of it fits a block, or no row the pool; ConfigError where its quota
    does not fit beside the others'.
    """
    assert entry.opened is not None
    width, there = entry.opened.spec.blocks_per_row, arena.total_blocks
    if width > there:
        raise ModelFolderError(
            f"{entry.name}: one row is {width} blocks, the pool has {there}: raise pool.bytes"
        )
    asked = terms(entry, arena)
    arena.ledger.add_model(
        entry.name, entry.opened.spec.blocks_per_row, asked.max_rows, asked.min_blocks, asked.max_blocks,
        row_tokens=entry.row_tokens(arena.block_bytes),
    )  # fmt: skip


def lane_spec(entry: Entry, arena: Arena, models: int, device: Device, *, split: bool = False) -> LaneSpec:
    """The lane of an opened entry, one of ``models`` on ``device``. Where that caps, its workers are spawned
    with their share and can never use more; ``split``: one prefills, another decodes. Raises
    ModelFolderError where no token fits a block.

    The scheduler cuts ``max_context`` to what the pool allows, and again whenever quotas or models change.
    """
    assert entry.opened is not None
    config = entry.config
    cap = config.share or equal_part(models, device.rungs)
    return LaneSpec(
        model=entry.name,
        share=cap if device.caps else config.share,
        row_tokens=entry.row_tokens(arena.block_bytes),
        blocks_per_row=entry.opened.spec.blocks_per_row,
        max_context=entry.own_context,
        max_running=_running(entry, device),
        max_queue=config.max_queue,
        capacity_rows=max(1, arena.total_blocks // entry.opened.spec.blocks_per_row),
        weight=entry.quota.weight,
        prefix_cache=config.prefix_cache,
        split=split,
        ttft_slo=config.ttft_slo,
        tpot_slo=config.tpot_slo,
        cap=cap if device.caps else 100,
    )


def setup(entry: Entry, arena: Arena, device: Device, link: str, budget: Budget | None = None) -> Setup:
    """What the workers of an opened entry begin with; ``link``: the daemon's endpoint. Their names come with
    their processes. ``budget``: what they are held to on a GPU; None: nothing."""
    assert entry.opened is not None
    plan, held = entry.opened.plan, {}
    if budget is not None and is_gpu(device):
        own = structs.replace(budget, max_running=_running(entry, device))
        held = {phases: scratch(load_of(entry), 1, own, phases) for phases in _PHASES}
    return Setup(
        worker="",
        model=entry.name,
        folder=str(entry.opened.folder),
        dtype=plan.dtype,
        link=link,
        device=device.name,
        pool_bytes=arena.nbytes,
        block_bytes=arena.block_bytes,
        max_rows=max(1, arena.most_blocks // entry.opened.spec.blocks_per_row),
        pool_reach=arena.reach,
        weights_bytes=plan.bytes,
        tensors=plan.tensors,
        cores=device.cores,
        max_context=entry.own_context,
        cpus=device.cpus,
        kv_dtype=entry.config.kv_dtype,
        max_running=_running(entry, device),
        scratch=held,
    )


def _running(entry: Entry, device: Device) -> int:
    return running(entry.config, gpu=is_gpu(device))
