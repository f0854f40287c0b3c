"""From a file, the environment and flags to a ``Config``: unknown keys and wrong types refused by name.

Precedence: command-line flags, then ``MUXD_*`` environment variables, then the file, then the default.
Nothing is read at import.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from muxd.config import (
    Config,
    LimitsConfig,
    ModelConfig,
    PlacementConfig,
    PoolConfig,
    SchedulerConfig,
    ServerConfig,
    TextConfig,
)
from muxd.config_checks import check
from muxd.errors import ConfigError


def load(
    path: Path | None, *, env: Mapping[str, str] = os.environ, flags: Mapping[str, Any] | None = None
) -> Config:
    """Read and check the configuration. ``flags`` maps dotted keys ("server.port") to given values.

    Raises ConfigError naming file and key.
    """
    raw = read_toml(path) if path else {}
    for key, value in {**_from_env(env), **(flags or {})}.items():
        _set(raw, key, value)
    try:
        config = msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'configuration'}: {explained(str(error))}") from None
    check(config, path)
    return _anchored(config, path.parent) if path else config


def with_model(config: Config, model: ModelConfig) -> Config:
    """The configuration with one model more. Raises ConfigError, as ``load`` would, naming the key."""
    more = msgspec.structs.replace(config, model=[*config.model, model])
    check(more, None)
    return more


def read_toml(path: Path) -> dict[str, Any]:
    """Raises ConfigError naming the file."""
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise ConfigError(f"{path} is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # also what is no UTF-8, and numbers of thousands of digits
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _from_env(env: Mapping[str, str]) -> dict[str, Any]:
    """MUXD_PORT, MUXD_POOL_BYTES, MUXD_SCHEDULER_OVERBOOK ...: [server] keys need no room name."""
    found: dict[str, Any] = {}
    rooms: dict[str, type[Struct]] = {
        "server": ServerConfig,
        "limits": LimitsConfig,
        "text": TextConfig,
        "pool": PoolConfig,
        "scheduler": SchedulerConfig,
        "placement": PlacementConfig,
    }
    for room, struct in rooms.items():
        for field in msgspec.structs.fields(struct):
            prefix = "MUXD_" if room == "server" else f"MUXD_{room.upper()}_"
            text = env.get(prefix + field.encode_name.upper())
            if text is not None:
                try:
                    value = msgspec.convert(text, field.type, strict=False)
                except msgspec.ValidationError as error:
                    raise ConfigError(f"{prefix}{field.encode_name.upper()}={text!r}: {error}") from None
                found[f"{room}.{field.encode_name}"] = value
    return found


def _set(raw: dict[str, Any], key: str, value: Any) -> None:
    room, _, name = key.partition(".")
    table = raw.setdefault(room, {})
    if isinstance(table, dict):
        table[name] = value


def explained(error: str) -> str:
    """msgspec's sentence, with its path ``$.model[...].share`` put first as a key."""
    match = re.fullmatch(r"(.*) - at `(?:key in )?\$\.?(.*)`", error)
    if match is None or not match[2]:
        return error
    choices = _choices(match[2]) if error.startswith("Invalid enum value") else ""
    return f"{match[2]}: {match[1]}{choices}"


def _choices(key: str) -> str:
    """The words that a key such as ``model[0].dtype`` may have."""
    kind: Any = msgspec.inspect.type_info(Config)
    for part in key.split("."):
        kind = next(f.type for f in kind.fields if f.encode_name == part.partition("[")[0])
        kind = getattr(kind, "item_type", kind)
    return "; write one of " + ", ".join(f'"{value}"' for value in kind.values)


def _anchored(config: Config, folder: Path) -> Config:
    """Relative paths are meant from the file that names them, wherever muxd is started."""

    def anchor(text: str) -> str:
        return str(folder.absolute() / Path(text).expanduser()) if text else ""

    models = [
        msgspec.structs.replace(m, path=anchor(m.path), chat_template=anchor(m.chat_template))
        for m in config.model
    ]
    profile = anchor(config.placement.profile)
    placement = msgspec.structs.replace(config.placement, profile=profile)
    server = config.server
    files = {name: anchor(getattr(server, name)) for name in ("keys", "tls_cert", "tls_key")}
    server = msgspec.structs.replace(server, **files)
    return msgspec.structs.replace(config, server=server, model=models, placement=placement)
