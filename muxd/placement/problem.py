"""What is to be placed, on what, and what a plan says. Pure data.

Rates are requests a second, lengths tokens, sizes bytes, times seconds, shares percent of a device.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from muxd.cost.shapes import ModelShape
from muxd.errors import ConfigError
from muxd.messages import Dtype

EQUAL = 0  # a share that follows who is there: what ``share`` is in muxd.toml unless somebody says another


class ModelLoad(Struct, frozen=True):
    """One model and the traffic it is meant to serve.

    ``cost`` is its name in the cost model (several models may share one); ``prompt`` and ``output`` are
    means.
    """

    name: str
    cost: str
    shape: ModelShape
    rate: float
    prompt: int
    output: int
    dtype: Dtype = "bfloat16"
    ttft_slo: float = 0.0  # 0: no target
    tpot_slo: float = 0.0
    weight: float = 1.0  # what one of its requests is worth
    path: str = ""  # model folder, copied into muxd.toml

    @property
    def weights(self) -> int:
        """Bytes of all tensors."""
        return self.shape.weight_bytes(1, self.dtype)

    def sequence(self, gpus: int) -> int:
        """Bytes of K and V, and of its state, that one request holds at most on each of ``gpus`` devices: of
        layers with windows all of its prompt while that is computed, and then what the windows see."""
        end = self.shape.kept_bytes(self.prompt + self.output, gpus, self.dtype)
        most = max(end, self.shape.kv_bytes(gpus, self.dtype) * self.prompt)
        return most + self.shape.state_bytes


class Gpus(Struct, frozen=True):
    """``hosts`` machines with ``per_host`` devices of ``memory`` bytes each. Meshes stay inside a host.

    ``fixed``: of each host the size of the one mesh that it is for good; (): a plan divides them as it likes.
    """

    kind: str
    memory: int
    per_host: int
    hosts: int = 1
    fixed: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return self.per_host * self.hosts


class Problem(Struct, frozen=True):
    """Models and devices. ``overbook``: percent of shares that may be booked above 100 (muxd.toml)."""

    models: tuple[ModelLoad, ...]
    gpus: Gpus
    overbook: int = 0

    @property
    def rate(self) -> float:
        return sum(model.rate for model in self.models)


class Mesh(Struct, frozen=True):
    """Models (indices into the problem, ascending) on ``gpus`` devices of one host, tensor parallel over all.

    ``shares`` are the decode shares, one a model.
    """

    host: int
    gpus: int
    models: tuple[int, ...] = ()
    shares: tuple[int, ...] = ()


Layout = tuple[Mesh, ...]


class Member(Struct, frozen=True):
    """One model of a unit: what it is given and what is predicted of it."""

    model: str
    prefill_share: int
    decode_share: int
    batch: int  # sequences decoded together
    weight: float  # of its quota: its part of the pool's use
    rate: float
    throughput: float  # requests a second it could serve
    ttft: float | None  # seconds; None where the rate is above the throughput, so that a queue only grows
    tpot: float

    @property
    def served(self) -> float:
        return min(self.rate, self.throughput)


class Unit(Struct, frozen=True):
    """Models on the devices ``gpus`` of ``host``; the tensor-parallel degree is their number."""

    host: int
    gpus: tuple[int, ...]
    members: tuple[Member, ...]
    pool_bytes: int  # on each device
    utilisation: float  # share-seconds asked for, over share-seconds there are; above 1 where overloaded

    @property
    def degree(self) -> int:
        return len(self.gpus)


class Trial(Struct, frozen=True):
    """What a policy did with a layout in simulation. ``on_time``: the part of all ``requests`` that kept
    their model's targets, or without any were served in ``promises.TIMES`` their time alone; ``worst``: of
    the model with the least. Seconds, None where nothing was served; ``per_second``: requests that ended."""

    policy: str
    requests: int
    on_time: float
    worst: float
    ttft_p50: float | None
    ttft_p99: float | None
    tpot_p50: float | None
    tpot_p99: float | None
    per_second: float


class Plan(Struct, frozen=True):
    """The units and what they serve together. ``method``: who made it; ``objective``: by its own formula;
    ``trials``: simulated, by the policy that the plan is for first, then by others on the same layout."""

    method: str
    units: tuple[Unit, ...]
    objective: float
    trials: tuple[Trial, ...] = ()

    @property
    def members(self) -> list[Member]:
        return [member for unit in self.units for member in unit.members]

    @property
    def rate(self) -> float:
        return sum(member.rate for member in self.members)

    @property
    def served(self) -> float:
        """Requests a second, of what is asked for."""
        return sum(member.served for member in self.members)

    @property
    def utilisation(self) -> float:
        """Mean over the devices, idle ones included where the plan names them."""
        devices = sum(unit.degree for unit in self.units)
        used = sum(unit.degree * min(1.0, unit.utilisation) for unit in self.units)
        return used / devices if devices else 0.0


class UnitLoad(Struct, frozen=True):
    """A unit as a simulator or a daemon needs it: names, rates and settings, no predictions.

    ``decode_shares`` are EQUAL where the scheduler gives them, as in a daemon; systems that are compared with
    it have their own.
    """

    host: int
    gpus: tuple[int, ...]
    degree: int
    pool_bytes: int  # on each device
    models: tuple[str, ...]
    rates: tuple[float, ...]
    prefill_shares: tuple[int, ...]
    decode_shares: tuple[int, ...]
    quota_weights: tuple[float, ...]
    batches: tuple[int, ...]


def units(plan: Plan) -> list[UnitLoad]:
    """The plan's units that hold models, by host and device, with the plan's shares."""
    found = [_unit_load(unit) for unit in plan.units if unit.members]
    return sorted(found, key=lambda unit: (unit.host, unit.gpus))


def _unit_load(unit: Unit) -> UnitLoad:
    members = unit.members
    return UnitLoad(
        host=unit.host,
        gpus=unit.gpus,
        degree=unit.degree,
        pool_bytes=unit.pool_bytes,
        models=tuple(member.model for member in members),
        rates=tuple(member.rate for member in members),
        prefill_shares=tuple(member.prefill_share for member in members),
        decode_shares=tuple(member.decode_share for member in members),
        quota_weights=tuple(member.weight for member in members),
        batches=tuple(member.batch for member in members),
    )


# ---- checks ------------------------------------------------------------------------------------------


def check(problem: Problem) -> None:
    """Raises ConfigError naming the model and the field."""
    if not problem.models:
        raise ConfigError("there is no model to place")
    twice = [name for name, count in Counter(m.name for m in problem.models).items() if count > 1]
    if twice:
        raise ConfigError(f"model.name: two models are called {twice[0]!r}; names must differ")
    for model in problem.models:
        for field in ("rate", "prompt", "output", "weight"):
            value = getattr(model, field)
            if not 0 < value < float("inf"):
                raise ConfigError(f"model.{field} ({model.name}): {value} must be above 0 and finite")
    gpus = problem.gpus
    if min(gpus.memory, gpus.per_host, gpus.hosts) < 1:
        raise ConfigError(f"gpus: {gpus.hosts} x {gpus.per_host} devices of {gpus.memory} bytes are none")


def check_layout(problem: Problem, layout: Sequence[Mesh]) -> None:
    """Every model exactly once, no host with more devices than it has.

    Raises ValueError, for a layout that says otherwise is a defect.
    """
    placed = Counter(model for mesh in layout for model in mesh.models)
    if placed != Counter(range(len(problem.models))):
        raise ValueError(f"not every model is placed exactly once: {dict(placed)}")
    devices: Counter[int] = Counter()
    for mesh in layout:
        if len(mesh.models) != len(mesh.shares) or not all(0 < share <= 100 for share in mesh.shares):
            raise ValueError(f"shares are not valid: {mesh}")
        devices[mesh.host] += mesh.gpus
    gpus = problem.gpus
    if any(count > gpus.per_host for count in devices.values()) or not set(devices) <= set(range(gpus.hosts)):
        raise ValueError(f"devices used per host: {dict(devices)}, there are {gpus.hosts} x {gpus.per_host}")


def replaced(mesh: Mesh, models: Iterable[int], shares: Iterable[int]) -> Mesh:
    """The mesh with other models."""
    return msgspec.structs.replace(mesh, models=tuple(models), shares=tuple(shares))


# ---- what a plan keeps of its promises ---------------------------------------------------------------


def attainment(plan: Plan, problem: Problem) -> float | None:
    """The part of the rate of models with targets that is predicted to meet them; None without targets.

    By means: a model's mean time to first token and between tokens, and what of its rate is served at all.
    """
    models = {model.name: model for model in problem.models}
    asked = met = 0.0
    for member in plan.members:
        model = models[member.model]
        if not (model.ttft_slo or model.tpot_slo):
            continue
        asked += member.rate
        on_time = not model.ttft_slo or (member.ttft is not None and member.ttft <= model.ttft_slo)
        if on_time and (not model.tpot_slo or member.tpot <= model.tpot_slo):
            met += member.served
    return met / asked if asked else None
