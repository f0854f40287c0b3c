"""A site with the models it begins with: accounts, lanes, scheduler and driver over one device's pool."""

from collections.abc import Iterator, Sequence
from itertools import count

from muxd.clock import Clock
from muxd.config import SchedulerConfig, splits
from muxd.device.base import Device, is_gpu
from muxd.engine.forecast import Forecast
from muxd.engine.journal import Tell
from muxd.engine.lane import LaneSpec
from muxd.engine.observer import Observer
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import settings_of
from muxd.engine.shares import Shares
from muxd.engine.unit import Unit
from muxd.errors import ModelFolderError
from muxd.fleet.accounts import lane_spec, open_account
from muxd.fleet.catalog import Entry
from muxd.fleet.site import Site
from muxd.fleet.zygote import Zygote
from muxd.link.daemon_end import DaemonEnd
from muxd.messages import Decode, Prefill
from muxd.placement.memory import Budget
from muxd.pool.arena import Arena


def open_site(  # noqa: PLR0913 - a site is wired from everything its daemon has
    name: str,
    device: Device,
    arena: Arena,
    entries: Sequence[Entry],
    config: SchedulerConfig,
    *,
    grow: bool,
    link: DaemonEnd,
    zygote: Zygote,
    clock: Clock,
    observer: Observer,
    ids: "count[int]",
    spawns: Iterator[int],
    tell: Tell,
    budget: Budget | None = None,
) -> Site:
    """``entries`` are those that were placed here; one that is not opened, or fits no block, gets no lane.

    ``grow``: memory that models leave joins the pool. ``tell`` hears what the unit's journal marks. ``ids``
    and ``spawns`` number the sequences and workers of all sites. ``budget``: what workers on a GPU are held
    to. Raises ConfigError where the models' quotas cannot hold together.
    """
    settings = settings_of(config, run_ahead=device.queues)
    forecast = None
    if config.admission == "slo":
        forecast = Forecast(observer.attainment.targets, settings.prefill_tokens)
    split = splits(config, device.rungs, gpu=is_gpu(device))
    lanes = _open_accounts(entries, arena, device, split=split)
    shares = Shares(device.rungs, config.overbook)
    scheduler = Scheduler(lanes, arena.ledger, shares, settings, policy=config.policy, forecast=forecast)

    def send(model: str, command: Prefill | Decode) -> None:
        site.send(model, command)

    def hung(model: str, reason: str, last: bool) -> None:
        site.hung(model, reason, last)

    unit = Unit(scheduler, send, clock, observer, ids, tell, name, hung)
    site = Site(
        name=name, device=device, arena=arena, unit=unit, link=link, zygote=zygote, clock=clock,
        spawns=spawns, split=split, grow=grow, budget=budget,
    )  # fmt: skip
    for entry in entries:
        entry.lane = unit.lanes.get(entry.name)
    return site


def _open_accounts(entries: Sequence[Entry], arena: Arena, device: Device, *, split: bool) -> list[LaneSpec]:
    opened = [entry for entry in entries if entry.opened is not None]
    for entry in opened:
        try:
            open_account(entry, arena)
        except ModelFolderError as error:
            entry.error = error.message
    sound = [entry for entry in opened if not entry.error]
    return [lane_spec(entry, arena, len(sound), device, split=split) for entry in sound]
