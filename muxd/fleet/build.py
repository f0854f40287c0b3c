"""A site: scheduler and driver over one device's pool."""

from collections.abc import Iterator
from itertools import count

from muxd.clock import Clock
from muxd.config import Config
from muxd.device.base import Device
from muxd.engine import assembly
from muxd.engine.journal import Tell
from muxd.engine.observer import Observer
from muxd.engine.unit import Unit
from muxd.fleet.accounts import place_of
from muxd.fleet.site import Site
from muxd.fleet.zygote import Zygote
from muxd.link.daemon_end import DaemonEnd
from muxd.placement.memory import Budget
from muxd.pool.arena import Arena


def open_site(  # noqa: PLR0913 - a site is wired from everything its daemon has
    name: str,
    device: Device,
    arena: Arena,
    config: Config,
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
    counts_workers: bool = False,
) -> Site:
    """Without models yet. ``grow``: memory that models leave joins the pool. ``tell`` hears what the unit's
    journal marks. ``ids`` and ``spawns`` number the sequences and workers of all sites. ``budget``: what
    workers on a GPU are held to; ``counts_workers``: it is of the device's memory.
    """
    where = place_of(device, arena, config)
    scheduler = assembly.scheduler(config.scheduler, where, arena.ledger, observer.attainment.targets)

    def hung(model: str, reason: str, last: bool) -> None:
        site.hung(model, reason, last)

    unit = Unit(scheduler, link.send, clock, observer, ids, tell, name, hung)
    site = Site(
        name=name, device=device, arena=arena, unit=unit, link=link, zygote=zygote, clock=clock,
        spawns=spawns, place=where, grow=grow, budget=budget, counts_workers=counts_workers,
    )  # fmt: skip
    return site
