"""From a configuration and a cost table to the daemon's own scheduler, as ``engine.assembly`` makes it.

Shapes and the device come from the profile, so a simulation needs neither folders nor weights.
"""

from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.profile import Profile, known_as
from muxd.cost.table import CostTable
from muxd.engine.assembly import opening, place, scheduler
from muxd.engine.lane import LaneSpec
from muxd.engine.memory import Terms
from muxd.engine.policies import Policy
from muxd.engine.scheduler import Scheduler
from muxd.engine.slo import Slo
from muxd.errors import ConfigError
from muxd.messages import KvDtype, dtype_of
from muxd.pool.ledger import Ledger
from muxd.sizes import pool_bytes


def likenesses(config: Config, profile: Profile) -> dict[str, str]:
    """Configured models that the profile knows by their folder and types, under another name. Raises
    ConfigError for one that it has with other weights."""
    found = {
        m.name: known_as(profile, m.name, m.path, dtype_of(m.dtype), m.kv_dtype, m.weights, m.cpu_step)
        for m in config.bases
    }
    return {name: other for name, other in found.items() if other not in (None, name)}


def plain_config(models: list[str], cost: CostTable | None = None) -> Config:
    """For a simulation without muxd.toml: defaults, equal shares for the workload's models, and their K and V
    as they were measured. Raises ConfigError for one that ``cost`` does not know."""
    kinds: dict[str, KvDtype] = {name: cost.model(name).shape.kv_dtype for name in models} if cost else {}
    return Config(
        pool=PoolConfig(bytes="1G"),
        model=[ModelConfig(name=name, path=name, kv_dtype=kinds.get(name, "auto")) for name in models],
    )


Opening = tuple[LaneSpec, Terms]  # what ``Scheduler.open`` takes


def make_scheduler(
    config: Config, cost: CostTable, policy: str | type[Policy] | None = None, *, meshed: bool = False
) -> Scheduler:
    """Everything empty, every worker still to become ready. ``policy``: not the configured one. ``meshed``:
    as ``engine.assembly.Place``.

    Raises ConfigError for quotas that cannot hold, models the cost table does not know, unknown policies.
    """
    made, openings = without_models(config, cost, policy, meshed=meshed)
    for one in openings.values():
        made.open(*one)
    return made


def without_models(
    config: Config, cost: CostTable, policy: str | type[Policy] | None = None, *, meshed: bool = False
) -> tuple[Scheduler, dict[str, Opening]]:
    """The same before its models are opened, and how each is. Raises ConfigError."""
    device, block_bytes = cost.device, config.pool.block_bytes
    ledger = Ledger(_pool_bytes(config, gpu=device.gpu) // block_bytes)
    where = place(
        config, tuple(device.rungs), ledger, block_bytes, gpu=device.gpu, caps=device.caps, meshed=meshed
    )  # fmt: skip
    targets = {model.name: Slo.of(model) for model in config.bases}
    for model in config.bases:
        if model.tp > 1:
            raise ConfigError(
                f"model.tp: {model.tp} ({model.name}): a profile is of one device, and tells nothing of "
                "models that are cut over several; leave tp out here (`muxctl plan` simulates its meshes)"
            )
    shapes = {model.name: cost.model(model.name).shape for model in config.bases}
    openings = {
        model.name: opening(model, shapes[model.name], where, len(config.bases)) for model in config.bases
    }
    return scheduler(config.scheduler, where, ledger, targets, policy), openings


def _pool_bytes(config: Config, *, gpu: bool) -> int:
    text = config.pool.bytes
    nbytes = None if "%" in text else pool_bytes(text, key="pool.bytes", memory=0, gpu=gpu)
    if nbytes is None:
        raise ConfigError(f"pool.bytes: a simulation has no device to take {text!r} of: write a size")
    return nbytes
