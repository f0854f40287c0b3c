"""Whether all of a configuration together makes sense. What is wrong is named by file and key."""

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import NODEFAULT
from msgspec.structs import fields

from muxd.config import OWN, Config, DeviceConfig, ModelConfig, ServerConfig
from muxd.errors import ConfigError
from muxd.sizes import pool_bytes, size


def check(config: Config, path: Path | None) -> None:
    """What types cannot say. Raises ConfigError naming file, key and value."""
    where = path or "configuration"
    names = [name for model in config.model for name in (model.name, *model.aliases)]
    for name in names:
        if names.count(name) > 1:
            key = "model.name" if [model.name for model in config.model].count(name) > 1 else "model.aliases"
            raise ConfigError(f"{where}: {key}: two models are called {name!r}; names must differ")
    for model in config.model:
        if not model.name:
            raise ConfigError(f"{where}: model.name: must not be empty")
        if not all(model.aliases):
            raise ConfigError(f"{where}: model.aliases: must not be empty texts ({model.name})")
        if model.lora or model.base:
            _check_adapter(model, config, where)
        elif not model.path:
            raise ConfigError(f"{where}: model.path: must name a model folder ({model.name})")
        if not 0 <= model.share <= 100:
            raise ConfigError(
                f"{where}: model.share: {model.share} is not a percentage from 0 to 100 ({model.name})"
            )
    _check_devices(config, where)
    _check_ranges(config, where)


def _check_adapter(model: ModelConfig, config: Config, where: Path | str) -> None:
    """It names its folder and a model with weights, and leaves that model's settings to it."""
    for key in ("lora", "base"):
        if not getattr(model, key):
            raise ConfigError(
                f"{where}: model.{key}: is missing; an adapter has both lora and base ({model.name})"
            )
    bases = {one.name: one for one in config.bases}
    if model.base not in bases:
        known = ", ".join(bases) or "none"
        raise ConfigError(
            f"{where}: model.base: {model.base!r} ({model.name}) is no model with weights; there are: {known}"
        )
    for field in fields(ModelConfig):
        default = field.default_factory() if field.default_factory is not NODEFAULT else field.default
        if field.encode_name not in OWN and getattr(model, field.name) != default:
            raise ConfigError(
                f"{where}: model.{field.encode_name}: an adapter has none of its own ({model.name}); set it "
                f"for its base, {model.base!r}"
            )


def _check_devices(config: Config, where: Path | str) -> None:
    """Several devices have different names and share no core; pinned models name one of them."""
    taken: dict[int, str] = {}
    seen: set[str] = set()
    members: set[str] = set()
    for device in config.device:
        if not re.fullmatch(r"cpu:\d+(\+cpu:\d+)*|cuda:\d+(\+cuda:\d+)*", device.name):
            raise ConfigError(
                f'{where}: device.name: {device.name!r} is no device; write "cuda:0" or "cpu:0", or a mesh '
                'such as "cuda:0+cuda:1"'
            )
        if device.name.partition(":")[0] != config.device[0].name.partition(":")[0]:
            raise ConfigError(f"{where}: device.name: {device.name!r}: all devices must be of one kind")
        if device.name in seen:
            raise ConfigError(f"{where}: device.name: two devices are called {device.name!r}")
        seen.add(device.name)
        for member in device.members:
            if member in members:
                raise ConfigError(f"{where}: device.name: {device.name!r}: {member} is there twice")
            members.add(member)
        key = f"{where}: device ({device.name})"
        _check_cores(device, key, taken, alone=len(members) == 1 and len(config.device) == 1)
        if device.memory:
            size(device.memory, key=f"{key}: memory")
    if config.device and config.server.device != "auto":
        raise ConfigError(f"{where}: server.device: give either it or [[device]] tables, not both")
    for model in config.model:
        if model.device and model.device not in seen:
            known = ", ".join(sorted(seen)) or "none in [[device]] tables"
            raise ConfigError(
                f"{where}: model.device: {model.device!r} ({model.name}) is not a device; there are: {known}"
            )
        _check_tp(model, config, where)


def _check_tp(model: ModelConfig, config: Config, where: Path | str) -> None:
    """A model is cut over all members of a mesh, or over none."""
    key = f"{where}: model.tp"
    if model.tp < 1:
        raise ConfigError(f"{key}: {model.tp} must be at least 1 ({model.name})")
    if model.tp == 1:
        return
    sizes = {device.name: len(device.members) for device in config.device}
    if model.device and sizes[model.device] != model.tp:
        raise ConfigError(
            f"{key}: {model.tp} ({model.name}), but {model.device!r} is {sizes[model.device]}: a model is "
            "cut over all devices of a mesh, or over none"
        )
    if model.tp not in sizes.values():
        mesh = "+".join(f"cuda:{number}" for number in range(model.tp))
        raise ConfigError(
            f"{key}: {model.tp} ({model.name}), but no [[device]] is a mesh of so many; write one such as "
            f'name = "{mesh}"'
        )
    if model.cpu_step == "native" or model.weights in ("int8", "int4"):
        setting = "cpu_step" if model.cpu_step == "native" else "weights"
        raise ConfigError(
            f"{where}: model.{setting}: {getattr(model, setting)!r} ({model.name}) with tp = {model.tp}: the "
            "native step is not cut over devices; leave it out"
        )


def _check_cores(device: DeviceConfig, key: str, taken: dict[int, str], *, alone: bool) -> None:
    """CPUs of its own, which join ``taken``: CPU number -> device."""
    if device.name.startswith("cuda") and device.cores:
        raise ConfigError(f"{key}: cores: a GPU has none to choose")
    if device.name.startswith("cpu") and len(device.cores) % len(device.members):
        raise ConfigError(
            f"{key}: cores: {len(device.cores)} are not divided evenly over {len(device.members)} members"
        )
    if device.name.startswith("cpu") and not alone and not device.cores:
        raise ConfigError(f"{key}: cores: name the CPUs that are its own, such as cores = [0, 1]")
    for core in device.cores:
        if core in taken or core < 0:
            why = f"is {taken[core]}'s already" if core in taken else "is no CPU"
            raise ConfigError(f"{key}: cores: {core} {why}")
        taken[core] = device.name


_ENDLESS = 1e15  # seconds, tokens or requests: no longer a number that somebody means


def _check_ranges(config: Config, where: Path | str) -> None:
    block = config.pool.block_bytes
    if block < 1024 or block & (block - 1):
        raise ConfigError(f"{where}: pool.block_bytes: {block} is not a power of two of at least 1024")
    pools = _pools(config, where, block)
    size(config.server.max_body, key=f"{where}: server.max_body")
    size(config.limits.body_memory, key=f"{where}: limits.body_memory")
    _check_text(config, where)
    check_quotas(config, where, pools)
    positive = {
        "server.shutdown_grace": config.server.shutdown_grace,
        "text.deadline": config.text.deadline,
        "limits.connections": config.limits.connections,
        "limits.header_timeout": config.limits.header_timeout,
        "limits.body_timeout": config.limits.body_timeout,
        "limits.idle_timeout": config.limits.idle_timeout,
        "limits.write_timeout": config.limits.write_timeout,
        "scheduler.drain_timeout": config.scheduler.drain_timeout,
        "scheduler.adapt_period": config.scheduler.adapt_period,
        "scheduler.batch_timeout": config.scheduler.batch_timeout,
        "scheduler.batch_timeout_factor": config.scheduler.batch_timeout_factor,
        "placement.period": config.placement.period,
        "placement.horizon": config.placement.horizon,
        "residency.patience": config.residency.patience,
        **{f"model.quota.weight ({m.name})": m.quota.weight for m in config.model},
        **{f"model.max_queue ({m.name})": m.max_queue for m in config.model},
    }
    for key, value in positive.items():
        if not 0 < value < _ENDLESS:  # also refuses nan
            raise ConfigError(f"{where}: {key}: {value} must be above 0 and finite")
    not_negative = {
        "scheduler.prefill_tokens": config.scheduler.prefill_tokens,
        "scheduler.look_ahead": config.scheduler.look_ahead,
        "placement.least_gain": config.placement.least_gain,
        "placement.cooldown": config.placement.cooldown,
        **{f"model.max_context ({m.name})": m.max_context for m in config.model},
        **{f"model.max_running ({m.name})": m.max_running for m in config.model},
        **{f"model.ttft_slo ({m.name})": m.ttft_slo for m in config.model},
        **{f"model.tpot_slo ({m.name})": m.tpot_slo for m in config.model},
        **{f"model.rate ({m.name})": m.rate for m in config.model},
    }
    for key, value in not_negative.items():
        if not 0 <= value < _ENDLESS:
            raise ConfigError(f"{where}: {key}: {value} must not be negative, and finite")
    if config.scheduler.admission == "slo" and config.model and not any(m.ttft_slo for m in config.model):
        raise ConfigError(f'{where}: scheduler.admission: "slo" needs a ttft_slo in at least one [[model]]')
    if not 0 <= config.scheduler.overbook <= 100:
        raise ConfigError(f"{where}: scheduler.overbook: must lie between 0 and 100")
    _check_server(config.server, where)


def _check_server(server: ServerConfig, where: Path | str) -> None:
    if not all(server.hosts) or not server.hosts:
        raise ConfigError(
            f'{where}: server.host: "" is no address; write "127.0.0.1", or "::" for every address there is'
        )
    if not 0 <= server.port <= 65535:
        raise ConfigError(f"{where}: server.port: {server.port} is not a port")
    if bool(server.tls_cert) != bool(server.tls_key):
        raise ConfigError(f"{where}: server.tls_cert and server.tls_key: give both or none")
    if server.traces and not _is_plain_url(server.traces):
        raise ConfigError(
            f"{where}: server.traces: is no URL of a receiver; write one such as "
            '"http://127.0.0.1:4318/v1/traces", without a name or password in it (OTEL_EXPORTER_OTLP_HEADERS '
            "has such things)"
        )
    for origin in server.cors_origins:
        if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", origin):
            raise ConfigError(
                f"{where}: server.cors_origins: {origin!r} is no origin; write "
                '"https://chat.example", without a slash at its end, or "*" for every page'
            )


def _is_plain_url(text: str) -> bool:
    """Of HTTP, with a host, and nothing secret in it."""
    try:
        url = urlsplit(text)
        return (
            url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and "@" not in url.netloc
        )
    except ValueError:
        return False


_LEAST_TEXT_MEMORY = 512 << 20  # an interpreter, its libraries and a small tokenizer


def _check_text(config: Config, where: Path | str) -> None:
    if not 1 <= config.text.processes <= 64:
        raise ConfigError(f"{where}: text.processes: {config.text.processes} must lie between 1 and 64")
    if size(config.text.memory, key=f"{where}: text.memory") < _LEAST_TEXT_MEMORY:
        raise ConfigError(f"{where}: text.memory: {config.text.memory!r} is less than 512M")
    size(config.text.budget, key=f"{where}: text.budget")


_UNKNOWN = 1 << 60  # bytes of a pool whose device is not open yet: percentages of it can be compared


def _pools(config: Config, where: Path | str, block: int) -> dict[str, int]:
    """Bytes of every device's pool, as far as they are known without the device."""
    found = {}
    for device in config.devices:
        key = f"device.pool ({device.name})" if config.device else "pool.bytes"
        gpu = not device.name.startswith("cpu")
        nbytes = pool_bytes(device.pool, key=f"{where}: {key}", memory=_UNKNOWN, gpu=gpu)
        if nbytes is not None and nbytes < block:
            raise ConfigError(f"{where}: {key}: {device.pool!r} holds no block of {block} bytes")
        found[device.name] = _UNKNOWN if nbytes is None or "%" in device.pool else nbytes
    return found


def check_quotas(config: Config, where: Path | str, pools: Mapping[str, int]) -> None:
    """Every guarantee must be one that can be kept, also when all are claimed at once. What cannot be known
    yet, the ledgers see to when the devices are open. ``pools``: bytes by device. Raises ConfigError."""
    promised, together = dict.fromkeys(pools, 0), 0
    for model in config.model:
        # Who is pinned lies in that pool; the others go where there is room, at least in the largest.
        pool = pools[model.device] if model.device else max(pools.values())
        least = size(model.quota.min, key=f"{where}: model.quota.min ({model.name})", whole=pool)
        most = size(model.quota.max, key=f"{where}: model.quota.max ({model.name})", whole=pool)
        alike = ("%" in model.quota.min) == ("%" in model.quota.max)
        if least > most and (alike or pool != _UNKNOWN):
            values = f"min {model.quota.min!r} is above max {model.quota.max!r}"
            raise ConfigError(f"{where}: model.quota ({model.name}): {values}")
        together += least
        if model.device:
            promised[model.device] += least
    over = [name for name, bytes in promised.items() if bytes > pools[name]]
    if together > sum(pools.values()) or over:
        asked, there = (promised[over[0]], pools[over[0]]) if over else (together, sum(pools.values()))
        whose = f" on {over[0]}" if over else ""
        raise ConfigError(
            f"{where}: model.quota.min: together {asked * 100 // there} % of the pool{whose}; "
            "raise pool.bytes or lower the guarantees"
        )
