"""The daemon's way to a scheduler and the simulator's, side by side, fed with the same events.

The daemon asks folders and a device, the simulator a profile of both.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, cast

from msgspec import Struct, structs
from prometheus_client import CollectorRegistry

from muxd.cli.profiling import merged, shares
from muxd.clock import VirtualClock
from muxd.config import (
    Config,
    ModelConfig,
)
from muxd.cost.profile import ModelProfile, Profile, load, save
from muxd.cost.shapes import of_spec
from muxd.cost.table import CostTable
from muxd.device.base import Device, is_gpu
from muxd.device.cpu import Cpu
from muxd.device.cuda import Cuda
from muxd.device.mps import Mps
from muxd.engine.actions import (
    Action,
    Arrived,
    BatchDone,
    Cancelled,
    Event,
    Joined,
    Launch,
    Tick,
    Withdraw,
    Withdrawn,
    WorkerLost,
    WorkerReady,
)
from muxd.engine.metrics import Metrics
from muxd.engine.observer import Observer
from muxd.engine.request import Request
from muxd.engine.scheduler import Scheduler
from muxd.engine.sequence import Sequence
from muxd.engine.slo import Slo
from muxd.errors import Busy, ConfigError, MuxdError
from muxd.errors import WorkerLost as WorkerLostError
from muxd.fleet.build import open_site
from muxd.fleet.catalog import Entry, Opened
from muxd.fleet.pool_sizes import pool_sizes
from muxd.fleet.site import Site
from muxd.messages import Decode, Prefill, Sampling, dtype_of
from muxd.models.spec import read_spec
from muxd.models.weights import stored_dtype
from muxd.pool.arena import Arena
from muxd.sim.build import make_scheduler
from support.costs import linear
from support.tiny import byte_tokenizer, tiny_keeping, tiny_llama

FOLDERS = {  # layers, KV heads, head_dim
    "small": (1, 1, 16),
    "wide": (2, 2, 64),
    "deep": (5, 1, 32),
}
KEEPING = "keeping"  # a model whose layers keep a state
END = 2


@dataclass
class Here:
    """Folders, and devices of every kind; what was read of a folder is kept."""

    path: Path
    devices: dict[str, Device]
    opened: dict[tuple[str, ...], Opened]

    def config(self, drawn: Config) -> Config:
        """With the folders where they are."""
        there = [structs.replace(model, path=str(self.path / model.path)) for model in drawn.model]
        return structs.replace(drawn, model=there)

    def read(self, config: ModelConfig, device: Device) -> Entry:
        """As the daemon does."""
        key = (config.path, config.dtype, str(is_gpu(device)))
        entry = Entry(config)
        if key not in self.opened:
            entry.open(gpu=is_gpu(device))
            assert entry.opened is not None, entry.error
            self.opened[key] = entry.opened
        entry.opened = self.opened[key]
        return entry


def everything_in(path: Path) -> Here:
    """Needs the stand-in driver."""
    for name, (layers, kv_heads, head_dim) in FOLDERS.items():
        byte_tokenizer(tiny_llama(path / name, head_dim=head_dim, layers=layers, kv_heads=kv_heads))
    byte_tokenizer(tiny_keeping(path / KEEPING))
    mps = Mps(path / "mps")
    devices: dict[str, Device] = {f"cpu of {cores}": Cpu(cores) for cores in (1, 2, 3)}
    devices |= {"turns": Cuda(), "parts": Cuda(mps=mps), "caps": Cuda(mps=mps, caps=True)}
    assert {name for name, one in devices.items() if one.caps} == {"caps"}
    return Here(path, devices, {})


# ---- the two ways ----------------------------------------------------------------------------------


def served(here: Here, config: Config, device: Device, arena: Arena) -> Scheduler:
    """The daemon's, from folders."""
    entries = [here.read(model, device) for model in config.model]
    site = site_of(config, device, arena, entries)
    assert [entry.error for entry in entries] == [""] * len(entries)
    return site.unit._scheduler


class Silent:
    """A link to nobody."""

    def send(self, worker: str, command: Prefill | Decode) -> None: ...


def site_of(config: Config, device: Device, arena: Arena, entries: list[Entry]) -> Site:
    targets = {m.name: Slo(m.ttft_slo, m.tpot_slo) for m in config.model}
    nothing = cast(Any, None)  # nothing is spawned here
    site = open_site(
        device.name, device, arena, config, grow=False, link=cast(Any, Silent()),
        zygote=nothing,
        clock=VirtualClock(), observer=Observer(Metrics(CollectorRegistry()), targets), ids=count(),
        spawns=nothing, tell=lambda mark: None,
    )  # fmt: skip
    site.open(entries)
    return site


def profiled(here: Here, config: Config, device: Device) -> Profile:
    """What ``muxd profile`` would have written of the models on the device, through its file."""
    path = here.path / "profile.json"
    path.unlink(missing_ok=True)
    for model in config.model:
        spec = read_spec(Path(model.path))
        dtype = dtype_of(model.dtype) or stored_dtype(Path(model.path), gpu=is_gpu(device))
        shape = of_spec(spec).on(1, dtype)
        grid = linear(0.001, shares=shares(device))
        save(path, merged(path, model.name, ModelProfile(shape, grid, grid), device))
    return load(path)


def simulated(config: Config, profile: Profile) -> Scheduler:
    """The simulator's, from a profile."""
    return make_scheduler(config, CostTable(profile))


# ---- are they alike? -------------------------------------------------------------------------------


def described(scheduler: Scheduler) -> dict[str, Any]:
    """All that was decided when it was assembled."""
    ledger, lanes = scheduler.ledger, scheduler.lanes
    return {
        "configured": {name: lane.spec.config for name, lane in lanes.items()},
        "lanes": {
            name: (structs.replace(lane.spec, config=None), lane.model_context, lane.equal)
            for name, lane in lanes.items()
        },
        "accounts": ledger.usage(),
        "limits": {name: ledger.limit(name) for name in lanes},
        "quotas": {name: scheduler.quota(name) for name in lanes},
        "blocks": (ledger.total_blocks, ledger.reach, ledger.free_blocks),
        "shares": (scheduler.shares.rungs, scheduler.shares.limit),
        "settings": scheduler.settings,
        "policy": scheduler.policy,
        "refuses early": scheduler.forecast is not None,
    }


def shown(value: Any) -> Any:
    """An action without what is one scheduler's own: sequences by number, errors by their words."""
    match value:
        case Sequence():
            return value.id
        case MuxdError():
            return type(value), value.message, value.retry_after
        case Struct():
            return type(value), [shown(getattr(value, name)) for name in value.__struct_fields__]
        case list():
            return [shown(one) for one in value]
    return value


class Pair:
    """Both schedulers in one time. What runs is known by the first one's actions, which are the other's."""

    def __init__(self, one: Scheduler, other: Scheduler):
        self.both = (one, other)
        self.now = 0.0
        self.requests: list[tuple[Sequence, Sequence]] = []
        self.running: dict[tuple[str, int], Prefill | Decode] = {}

    def handle(self, events: tuple[Event, Event]) -> None:
        actions = [unit.handle(event, self.now) for unit, event in zip(self.both, events, strict=True)]
        assert shown(actions[0]) == shown(actions[1])
        assert self.both[0].deadline(self.now) == self.both[1].deadline(self.now)
        self._note(actions[0])

    def _note(self, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Launch):
                self.running[action.flight.model, action.flight.batch] = action.flight.command

    def same(self, event: Event) -> None:
        self.handle((event, event))

    def arrive(self, model: str, prompt: list[int], most: int) -> None:
        number = len(self.requests)
        asked = Request(str(number), model, prompt, most, Sampling(temperature=0.0), frozenset([END]))
        pair = (Sequence(number, asked, self.now), Sequence(number, asked, self.now))
        self.requests.append(pair)
        self.handle((Arrived(pair[0]), Arrived(pair[1])))

    def cancel(self, index: int) -> None:
        one, other = self.requests[index]
        self.handle((Cancelled(one), Cancelled(other)))

    def finish(self, index: int, seconds: float, *, stop: bool) -> None:
        model, batch = list(self.running)[index % len(self.running)]
        command = self.running.pop((model, batch))
        if isinstance(command, Prefill):
            count = sum(chunk.last for chunk in command.chunks)
        else:
            count = len(command.seqs)
        self.now += seconds
        self.same(BatchDone(model, batch, [END if stop else 5] * count))

    def lose(self, model: str) -> None:
        self.running = {key: command for key, command in self.running.items() if key[0] != model}
        self.same(WorkerLost(model, WorkerLostError("killed")))
        self.same(WorkerReady(model))

    def control(self, change: Callable[[Scheduler], None]) -> None:
        said = ["", ""]
        for i, unit in enumerate(self.both):
            try:
                change(unit)
            except (ConfigError, Busy) as error:
                said[i] = error.message
        assert said[0] == said[1]
        self.same(Tick())

    def go_and_come_back(self, model: str) -> None:
        """What waits is withdrawn, as for a move, and joins again."""
        actions = [unit.handle(Withdraw(model, 40), self.now) for unit in self.both]
        assert shown(actions[0]) == shown(actions[1])
        self._note(actions[0])
        gone = [[one.sequence for one in found if isinstance(one, Withdrawn)] for found in actions]
        for one, other in zip(*gone, strict=True):
            self.handle((Joined(one), Joined(other)))

    def run(self) -> None:
        """To rest, if what waits can go on at all."""
        for _ in range(3000):
            if not self.running:
                break
            self.finish(0, 0.01, stop=False)
        for unit in self.both:
            unit.ledger.audit()
        assert described(self.both[0]) == described(self.both[1])


def outcome(make: Callable[[], Scheduler]) -> Scheduler | str:
    """Or why there is none."""
    try:
        return make()
    except ConfigError as error:
        return error.message


def compare(
    here: Here,
    config: Config,
    device: Device,
    profile: Profile,
    script: list[tuple[Any, ...]],
    told: Config | None = None,
) -> None:
    """The daemon's by ``config`` on ``device``, the simulator's by ``profile`` and ``told``, the same unless
    given: from first to last."""
    [nbytes] = pool_sizes(config, {"": device}, []).values()
    with closing(Arena(device, nbytes, config.pool.block_bytes)) as arena:
        one = outcome(lambda: served(here, config, device, arena))
        other = outcome(lambda: simulated(told or config, profile))
        if isinstance(one, str) or isinstance(other, str):
            assert one == other
            return
        assert described(one) == described(other)
        play(Pair(one, other), script)


def play(pair: Pair, script: list[tuple[Any, ...]]) -> None:
    names = list(pair.both[0].lanes)
    for name in names:
        pair.same(WorkerReady(name))
    for kind, *args in script:
        name = names[args[0] % len(names)] if isinstance(args[0], int) else ""
        match kind:
            case "arrive":
                _, several, prompt, most, same = args
                for _ in range(several):
                    pair.arrive(name, [7 if same else 100 + len(pair.requests)] * prompt, most)
            case "finish" if pair.running:
                pair.finish(args[0], args[1], stop=args[2])
            case "cancel" if pair.requests:
                pair.cancel(args[0] % len(pair.requests))
            case "lose":
                pair.lose(name)
            case "move":
                pair.go_and_come_back(name)
            case "pause":
                pair.now += args[0]
                pair.same(Tick())
            case "quota":
                total = pair.both[0].ledger.total_blocks
                pair.control(lambda unit: unit.set_quota(name, args[1], total, args[2]))  # noqa: B023
            case "share":
                pair.control(lambda unit: unit.set_share(name, args[1]))  # noqa: B023
    pair.run()
