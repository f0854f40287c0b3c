"""From a configuration and a cost table to the daemon's own scheduler, ledger and shares.

The daemon reads shapes from model folders (muxd.daemon); here they come from the profile, so a simulation
needs neither folders nor weights.
"""

from collections.abc import Mapping
from typing import Any

from muxd.config import Config, ModelConfig, PoolConfig, running, splits
from muxd.cost.profile import Profile, Shape, known_as
from muxd.cost.table import CostTable
from muxd.engine.forecast import Forecast
from muxd.engine.lane import LaneSpec
from muxd.engine.policies import Policy
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings, settings_of
from muxd.engine.shares import Shares
from muxd.engine.slo import Slo
from muxd.errors import ConfigError
from muxd.messages import KvDtype, dtype_of, kv_item_bytes
from muxd.pool.ledger import Ledger
from muxd.sizes import pool_bytes, size


def likenesses(config: Config, profile: Profile) -> dict[str, str]:
    """Configured models that the profile knows by their folder and types, under another name."""
    found = {m.name: known_as(profile, m.name, m.path, dtype_of(m.dtype), m.kv_dtype) for m in config.model}
    return {name: other for name, other in found.items() if other not in (None, name)}


def plain_config(models: list[str], cost: CostTable | None = None) -> Config:
    """For a simulation without muxd.toml: defaults, equal shares for the workload's models, and their K and V
    as they were measured. Raises ConfigError for one that ``cost`` does not know."""
    kinds: dict[str, KvDtype] = {name: cost.model(name).shape.kv_dtype for name in models} if cost else {}
    return Config(
        pool=PoolConfig(bytes="1G"),
        model=[ModelConfig(name=name, path=name, kv_dtype=kinds.get(name, "auto")) for name in models],
    )


def make_scheduler(config: Config, cost: CostTable, policy: str | type[Policy] | None = None) -> Scheduler:
    """Everything empty, every worker still to become ready. ``policy``: not the configured one.

    Raises ConfigError for quotas that cannot hold, models the cost table does not know, unknown policies.
    """
    block_bytes = config.pool.block_bytes
    ledger = Ledger(_pool_bytes(config, gpu=cost.device.gpu) // block_bytes)
    shapes = {model.name: cost.model(model.name).shape for model in config.model}
    for model in config.model:
        _open_account(ledger, model, shapes[model.name], block_bytes)
    gpu = cost.device.gpu
    split = splits(config.scheduler, cost.device.rungs, gpu=gpu)
    lanes = [_lane(ledger, model, shapes[model.name], config, split, gpu) for model in config.model]
    shares = Shares(cost.device.rungs, config.scheduler.overbook)
    settings = settings_of(config.scheduler, run_ahead=gpu)
    return Scheduler(
        lanes, ledger, shares, settings, policy=policy or config.scheduler.policy,
        forecast=_forecast(config, settings),
    )  # fmt: skip


def _forecast(config: Config, settings: Settings) -> Forecast | None:
    """With ``admission = "slo"`` requests are refused early, as the daemon does."""
    if config.scheduler.admission != "slo":
        return None
    targets = {model.name: Slo(model.ttft_slo, model.tpot_slo) for model in config.model}
    return Forecast(targets, settings.prefill_tokens)


def _open_account(ledger: Ledger, model: ModelConfig, shape: Shape, block_bytes: int) -> None:
    whole = ledger.total_blocks * block_bytes
    least, most = (
        size(text, key=f"model.quota.{key} ({model.name})", whole=whole) // block_bytes
        for key, text in (("min", model.quota.min), ("max", model.quota.max))
    )
    per_row = shape.layers * shape.kv_heads
    rows = max(1, ledger.total_blocks // per_row)
    tokens = row_tokens(shape, block_bytes, model.kv_dtype)
    ledger.add_model(model.name, per_row, rows, least, most, row_tokens=tokens)


def _pool_bytes(config: Config, *, gpu: bool) -> int:
    text = config.pool.bytes
    nbytes = None if "%" in text else pool_bytes(text, key="pool.bytes", memory=0, gpu=gpu)
    if nbytes is None:
        raise ConfigError(f"pool.bytes: a simulation has no device to take {text!r} of: write a size")
    return nbytes


def row_tokens(shape: Shape, block_bytes: int, kv_dtype: KvDtype) -> int:
    """T of docs/design.md §1. Raises ConfigError when no token fits a block."""
    tokens = block_bytes // (2 * shape.head_dim * kv_item_bytes(shape.dtype, kv_dtype))
    if tokens < 1:
        raise ConfigError(f"pool.block_bytes: {block_bytes} holds no token at head_dim {shape.head_dim}")
    return tokens


def _lane(
    ledger: Ledger, model: ModelConfig, shape: Shape, config: Config, split: bool, gpu: bool
) -> LaneSpec:
    tokens = row_tokens(shape, config.pool.block_bytes, model.kv_dtype)
    capacity = ledger.limit(model.name)
    most = min(shape.max_positions, capacity * tokens)
    known = {
        **_same_names(LaneSpec, model),
        "model": model.name,
        "row_tokens": tokens,
        "blocks_per_row": shape.layers * shape.kv_heads,
        "weight": model.quota.weight,
        "split": split,
        "max_running": running(model, gpu=gpu),
        "max_context": min(model.max_context or most, most),
        "capacity_rows": capacity,
    }
    return LaneSpec(**known)


def _same_names(struct: Any, settings: Any) -> Mapping[str, Any]:
    """Settings that go to the engine under their own name, also those that come later."""
    return {name: getattr(settings, name) for name in struct.__struct_fields__ if hasattr(settings, name)}
