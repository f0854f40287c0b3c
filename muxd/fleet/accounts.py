"""What ``engine.assembly`` asks of a device and of a model folder, and what workers are told of both."""

from msgspec import structs

from muxd.config import Config
from muxd.device.base import Device, is_gpu
from muxd.engine.assembly import Place, opening, place
from muxd.engine.lane import LaneSpec
from muxd.engine.memory import Terms
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import load_of, shape
from muxd.messages import Phases, Setup
from muxd.placement.memory import Budget, scratch
from muxd.pool.arena import Arena

_PHASES: tuple[Phases, ...] = ("both", "prefill", "decode")


def place_of(device: Device, arena: Arena, config: Config) -> Place:
    """``device`` with its pool, as the scheduler sees them."""
    gpu = is_gpu(device)
    return place(
        config, device.rungs, arena.ledger, arena.block_bytes, gpu=gpu, caps=device.caps,
        meshed=gpu and len(device.members) > 1,
    )  # fmt: skip


def opening_of(entry: Entry, where: Place, models: int) -> tuple[LaneSpec, Terms]:
    """Of an opened entry, by the quota that an operator has left it, one of ``models`` there. Raises as
    ``assembly.opening``."""
    assert entry.opened is not None
    own = structs.replace(entry.config, quota=entry.quota)
    lane, terms = opening(own, shape(entry).on(1, entry.opened.plan.dtype), where, models)
    return structs.replace(lane, whole=entry.opened.spec.encoder), terms


def setup(
    entry: Entry, arena: Arena, device: Device, where: Place, link: str, budget: Budget | None = None
) -> Setup:
    """What the workers of an opened entry begin with, in step with its lane; ``link``: the daemon's endpoint.
    Their names come with their processes. ``budget``: what they are held to on a GPU; None: nothing."""
    assert entry.opened is not None
    spec, terms = opening_of(entry, where, 1)  # its share of the device is told with every batch
    plan, held = entry.opened.plan, {}
    if budget is not None and where.gpu:
        own = structs.replace(budget, max_running=spec.max_running)
        held = {phases: scratch(load_of(entry), 1, own, phases) for phases in _PHASES}
    return Setup(
        worker="",
        model=entry.name,
        folder=str(entry.opened.folder),
        dtype=plan.dtype,
        link=link,
        device=device.name,
        pool_bytes=arena.nbytes,
        block_bytes=where.block_bytes,
        max_rows=terms.max_rows,
        pool_reach=arena.reach,
        weights_bytes=plan.bytes,
        tensors=plan.tensors,
        cores=device.cores,
        max_context=spec.max_context,
        cpus=device.cpus,
        kv_dtype=spec.config.kv_dtype,
        max_running=spec.max_running,
        scratch=held,
        lora=plan.lora,
    )
