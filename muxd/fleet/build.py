"""A site with the models it begins with: scheduler and driver over one device's pool."""

from collections.abc import Iterator, Sequence
from itertools import count

from muxd.clock import Clock
from muxd.config import SchedulerConfig
from muxd.device.base import Device
from muxd.engine import assembly
from muxd.engine.assembly import Place
from muxd.engine.journal import Tell
from muxd.engine.observer import Observer
from muxd.engine.unit import Unit
from muxd.errors import NoRow
from muxd.fleet.accounts import opening_of, place_of
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
    """``entries`` are those that were placed here; one that is not opened, or finds no row, gets no lane.

    ``grow``: memory that models leave joins the pool. ``tell`` hears what the unit's journal marks. ``ids``
    and ``spawns`` number the sequences and workers of all sites. ``budget``: what workers on a GPU are held
    to. Raises ConfigError where the models' quotas cannot hold together.
    """
    where = place_of(device, arena, config)
    scheduler = assembly.scheduler(config, where, arena.ledger, observer.attainment.targets)

    def send(model: str, command: Prefill | Decode) -> None:
        site.send(model, command)

    def hung(model: str, reason: str, last: bool) -> None:
        site.hung(model, reason, last)

    unit = Unit(scheduler, send, clock, observer, ids, tell, name, hung)
    site = Site(
        name=name, device=device, arena=arena, unit=unit, link=link, zygote=zygote, clock=clock,
        spawns=spawns, place=where, grow=grow, budget=budget,
    )  # fmt: skip
    sound = [entry for entry in entries if entry.opened is not None and _finds_a_row(entry, where)]
    for entry in sound:
        site.enter(entry, len(sound))
    return site


def _finds_a_row(entry: Entry, where: Place) -> bool:
    """Else ``entry.error`` says why."""
    try:
        opening_of(entry, where, 1)
    except NoRow as error:
        entry.error = error.message
    return not entry.error
