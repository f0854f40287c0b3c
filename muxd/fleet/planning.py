"""What a daemon knows for the question which model runs where: sizes, rates, costs, pins. Asks ``placement``.

With one device there is nothing to ask, but for a plan of several hosts (``host_view``). Costs are a
profile's (``placement.profile``), else a roofline of the GPU, or of the CPU as it is measured the first time.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import msgspec

from muxd.config import Config
from muxd.cost import profile
from muxd.cost.analytic import Roofline
from muxd.cost.estimate import Costs
from muxd.cost.peaks import CAPTURED, PEAKS, Peak, Reach, recognised
from muxd.cost.profile import Profile
from muxd.cost.profiled import Profiled
from muxd.cost.table import CostTable
from muxd.device import host_speed
from muxd.device.base import Device, is_gpu
from muxd.errors import ConfigError
from muxd.fleet.catalog import Entry
from muxd.fleet.demand import Demand, load_of
from muxd.fleet.pool_sizes import budget
from muxd.placement import live
from muxd.placement.host_view import HostDevice, HostedModel, HostView
from muxd.placement.live import Live, Room
from muxd.placement.memory import Budget
from muxd.placement.problem import ModelLoad
from muxd.placement.sets import Sets
from muxd.sizes import size

_log = logging.getLogger("muxd.fleet")

_DEFAULT = "a100"  # peaks of a GPU that is not in the table: relations count, not seconds

# Of numpy's speed and a thread's copying. What a batch takes beside is an assumption.
_HOST = Reach(
    decode_flops=1.0,
    prefill_flops=1.0,
    bandwidth=1.0,
    link=1.0,
    together=1.0,
    flops_exponent=1.0,
    bandwidth_exponent=1.0,
    allreduce=0.0,
    decode_layer=0.0,
    prefill_layer=0.0,
    batch=1e-3,
)


class _Ground(NamedTuple):
    """What is reckoned with."""

    devices: dict[str, HostDevice]
    room: Room
    peak: Peak
    reach: Reach
    budget: Budget
    profile: Profile | None
    table: CostTable | None


class Planning:
    """``devices`` by name, in the order of the configuration. Raises ConfigError where the profile cannot be
    read; blocks for a moment to measure the CPU, so from a thread."""

    def __init__(self, config: Config, devices: Mapping[str, Device], pools: Mapping[str, int]):
        self._config, self.names = config, list(devices)
        self._devices, self._pools = devices, pools
        self._sizes = [len(device.members) for device in devices.values()]
        self._several = len(devices) > 1
        if self._several:
            _ = self._ground  # what is wrong with the profile is said at the start

    @cached_property
    def _ground(self) -> _Ground:
        config, devices = self._config, self._devices
        hosts = sum(not is_gpu(device) for device in devices.values())

        def memory(name: str, device: Device) -> int:
            limited = any(one.name == name and one.memory for one in config.devices)
            return device.memory // (1 if is_gpu(device) or limited else hosts)

        first = next(iter(devices.values()))
        found = {
            name: HostDevice(memory(name, one), self._pools[name], len(one.members))
            for name, one in devices.items()
        }
        least, sizes = min(one.memory for one in found.values()), tuple(self._sizes)
        room = Room(len(found), least, max(self._pools.values()), tuple(first.rungs), sizes)
        measured = config.placement.profile
        known = profile.load(Path(measured)) if measured else None
        table = CostTable(known, source=measured) if known else None
        return _Ground(found, room, *_speed(first), budget(config, first), known, table)

    # ---- what is asked ----------------------------------------------------------------------------

    def start(self, entries: Iterable[Entry]) -> None:
        """Give every opened entry its device, the pinned their own. The others stay without."""
        if not self._several:
            for entry in entries:
                entry.device = self.names[0]
            return
        opened = [entry for entry in entries if entry.opened is not None]
        if not opened:
            return
        pins = self.pins(opened)
        try:
            found = live.start(self.appraiser(opened), pins)
        except ConfigError as error:
            _log.warning("no plan for the models: %s; they are spread by size", error.message)
            found = self._by_size(opened, pins)
        for entry in opened:
            entry.device = self.names[found[entry.name]]
            _log.info("%s goes to %s", entry.name, entry.device)

    def place(self, entry: Entry, others: Iterable[Entry]) -> str:
        """The device for one opened model more, ``others`` staying where they are."""
        if not self._several:
            return self.names[0]
        if entry.config.device:
            return entry.config.device
        placed = [one for one in others if one.lane is not None and one.name != entry.name]
        try:
            appraiser = self.appraiser([*placed, entry])
        except ConfigError as error:
            _log.warning("no plan for %s: %s; it goes where most is left", entry.name, error.message)
            return self.names[self._by_size([*placed, entry], self.now(placed))[entry.name]]
        held = [tuple(i for i, one in enumerate(placed) if one.device == name) for name in self.names]
        return self.names[live.best(appraiser, Sets(appraiser), held, len(placed))]

    def appraiser(self, entries: Sequence[Entry], demands: Mapping[str, Demand] | None = None) -> Live:
        """Of opened entries, at measured demands where there are some. Raises ConfigError where the costs of
        a model are not known, or no plan could hold the models."""
        loads = [self._measured(entry, load_of(entry, (demands or {}).get(entry.name))) for entry in entries]
        least = {entry.name: self._least(entry) for entry in entries}
        ranks = {entry.name: entry.config.tp for entry in entries}
        return Live(loads, self._ground.room, self._costs(loads), self._ground.budget, least, ranks)

    def host_view(self, entries: Iterable[Entry], demands: Mapping[str, Demand]) -> HostView:
        """Of opened entries, for a plan over several hosts. The first time it may measure the CPU."""
        ground = self._ground
        models = [
            HostedModel(
                load_of(entry, demands.get(entry.name)),
                entry.config,
                entry.device,
                self._least(entry),
                entry.pinned or entry.config.tp > 1 or bool(entry.adapters),
            )
            for entry in entries
        ]
        return HostView(ground.devices, ground.room.rungs, ground.peak, ground.reach, ground.budget, models)

    def pins(self, entries: Iterable[Entry]) -> dict[str, int]:
        """Pinned models stay where they are: where the configuration says, or an operator has moved them."""
        fixed = [one for one in entries if one.config.device]
        return {one.name: self.names.index(one.device) for one in fixed}

    def now(self, entries: Iterable[Entry]) -> dict[str, int]:
        """Where they are."""
        return {one.name: self.names.index(one.device) for one in entries}

    # ---- inside -----------------------------------------------------------------------------------

    def _costs(self, loads: Sequence[ModelLoad]) -> Costs:
        ground = self._ground
        if ground.table is not None:
            return Profiled(ground.table)
        dtypes = {load.cost: load.dtype for load in loads}
        return Roofline(ground.peak, {load.cost: load.shape for load in loads}, ground.reach, dtypes)

    def _measured(self, entry: Entry, load: ModelLoad) -> ModelLoad:
        """By the name that the profile has for the model. Raises ConfigError where it has it otherwise."""
        if self._ground.profile is None:
            return load
        config = entry.config
        known = profile.known_as(
            self._ground.profile,
            entry.name,
            config.path,
            load.dtype,
            config.kv_dtype,
            config.weights,
            config.cpu_step,
        )
        return msgspec.structs.replace(load, cost=known or load.cost)

    def _least(self, entry: Entry) -> int:
        return size(entry.quota.min, key=f"model.quota.min ({entry.name})", whole=self._ground.room.pool)

    def _by_size(self, entries: Sequence[Entry], pins: Mapping[str, int]) -> dict[str, int]:
        """Largest first, each where the fewest bytes of weights are, of the devices that take it."""
        held, found = [0] * len(self.names), dict(pins)
        for entry in sorted(entries, key=_bytes, reverse=True):
            taking = [at for at, size in enumerate(self._sizes) if entry.config.tp in (1, size)]
            at = found.setdefault(entry.name, min(taking, key=held.__getitem__))
            held[at] += _bytes(entry)
        return found


def _bytes(entry: Entry) -> int:
    return entry.opened.plan.bytes if entry.opened else 0


def _speed(device: Device) -> tuple[Peak, Reach]:
    if not is_gpu(device):
        bandwidth = host_speed.bandwidth()
        return Peak("cpu", host_speed.flops(), bandwidth, bandwidth), _HOST
    known = recognised(device.kind)
    if known is None:
        _log.warning("no peaks of a %s are known: placement reckons with those of an %s; `muxd profile` "
                     "and placement.profile give better costs", device.kind, _DEFAULT)  # fmt: skip
    return known or PEAKS[_DEFAULT], CAPTURED
