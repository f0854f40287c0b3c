"""From what is configured to a scheduler over one pool, and to the lane and account of a model in it. Pure.

The daemon reads shapes in model folders and asks devices, the simulator finds both in a cost profile. From
there on they have this one way, so that what is simulated is what serves.
"""

from collections.abc import Mapping

from msgspec import Struct

from muxd.config import Config, ModelConfig, Phasing, SchedulerConfig, context, phasing, running
from muxd.cost.profile import Shape
from muxd.cost.shares import equal_part
from muxd.engine.forecast import Forecast
from muxd.engine.lane import LaneSpec
from muxd.engine.memory import Terms
from muxd.engine.policies import Policy
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import settings_of
from muxd.engine.shares import Shares
from muxd.engine.slo import Slo
from muxd.errors import NoRow
from muxd.messages import kv_item_bytes
from muxd.models.spec import tokens_per_row
from muxd.models.state_layout import rows_of_state
from muxd.pool.ledger import Ledger
from muxd.pool.windowed import Windowed, row_ids
from muxd.sizes import size


class Place(Struct, frozen=True):
    """A device and its pool, as far as schedulers and lanes depend on them."""

    rungs: tuple[int, ...]  # shares in percent that a worker can really run at
    block_bytes: int
    total_blocks: int  # head blocks of the pool itself
    most_blocks: int  # and with everything that can be lent to it
    gpu: bool = False  # steps run ahead there
    phasing: Phasing = "in turn"  # of a model's prefill and decode
    caps: bool = False  # a worker keeps for life the share it begins with
    meshed: bool = False  # several GPUs: kernels that wait for their other ranks have SMs of their own

    @property
    def split(self) -> bool:
        """A batch of each phase of a model computes at once."""
        return self.phasing != "in turn"

    @property
    def apart(self) -> bool:
        """A model has a process for each phase."""
        return self.phasing == "apart"

    @property
    def parts(self) -> int:
        """Of the device that a batch's share is made of, one for each rung; 0: it has none."""
        return len(self.rungs) if self.gpu and not self.caps and len(self.rungs) > 1 else 0


def place(
    config: Config,
    rungs: tuple[int, ...],
    ledger: Ledger,
    block_bytes: int,
    *,
    gpu: bool,
    caps: bool,
    meshed: bool = False,
) -> Place:
    """Of a device and the ``ledger`` of its pool of ``block_bytes`` blocks."""
    how = phasing(config, rungs, gpu=gpu, caps=caps)
    return Place(rungs, block_bytes, ledger.total_blocks, ledger.reach, gpu, how, caps, meshed)


def scheduler(
    config: SchedulerConfig,
    where: Place,
    ledger: Ledger,
    targets: Mapping[str, Slo],
    policy: str | type[Policy] | None = None,
) -> Scheduler:
    """Without models: they are opened one by one, at the start as later. ``targets`` are looked at whenever
    somebody is to be refused early. ``policy``: not the configured one. Raises ConfigError for one there is
    not."""
    settings = settings_of(config, gpu=where.gpu)
    forecast = Forecast(targets, settings.prefill_tokens) if config.admission == "slo" else None
    shares = Shares(where.rungs, 0 if where.meshed else config.overbook)
    return Scheduler(
        (), ledger, shares, settings, policy=policy or config.policy, forecast=forecast, parts=where.parts
    )


def opening(model: ModelConfig, shape: Shape, where: Place, models: int) -> tuple[LaneSpec, Terms]:
    """What ``Scheduler.open`` takes of one of ``models`` models. K and V are kept as ``model`` says, however
    those of ``shape`` were.

    Raises NoRow where the pool can hold no row of it, ConfigError naming a size that is none.
    """
    width, item = shape.blocks_per_row, kv_item_bytes(shape.dtype, model.kv_dtype)
    if width > where.total_blocks:
        there = where.total_blocks
        raise NoRow(f"{model.name}: one row is {width} blocks, the pool has {there}: raise pool.bytes")
    state = 0 if shape.delta is None else rows_of_state(shape.delta, where.block_bytes, width)
    if (state + 1) * width > where.total_blocks:
        raise NoRow(
            f"{model.name}: the state of one sequence and a row of its tokens are {(state + 1) * width} "
            f"blocks, the pool has {where.total_blocks}: raise pool.bytes"
        )
    windowed = Windowed.of(shape.windows, shape.layer_blocks or (shape.kv_heads,) * shape.layers)
    # Workers are spawned with their part, where it is one for life.
    cap = model.share or equal_part(models, where.rungs)
    spec = LaneSpec(
        config=model,
        share=cap if where.caps else model.share,
        row_tokens=tokens_per_row(where.block_bytes, shape.head_dim, item),
        blocks_per_row=width,
        max_context=context(model, shape.max_positions),
        max_running=running(model, gpu=where.gpu),
        capacity_rows=where.total_blocks // width,
        split=where.split,
        apart=where.apart,
        cap=cap if where.caps else 100,
        state_rows=state,
        windowed=windowed,
    )
    least, most = (
        size(text, key=f"model.quota.{key} ({model.name})", whole=where.total_blocks * where.block_bytes)
        // where.block_bytes
        for key, text in (("min", model.quota.min), ("max", model.quota.max))
    )
    return spec, Terms(least, most, max_rows=row_ids(where.most_blocks, width, windowed))
