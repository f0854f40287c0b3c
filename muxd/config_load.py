"""From a file, the environment and flags to a ``Config``: unknown keys and wrong types refused by name.

Precedence: command-line flags, then ``MUXD_*`` environment variables, then the file, then the default. After
the file come the drop-ins beside it, ``[[model]]`` tables each. Nothing is read at import.
"""

import logging
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from muxd.config import (
    Config,
    ModelConfig,
)
from muxd.config_checks import check
from muxd.errors import ConfigError

_log = logging.getLogger("muxd.config")

T = TypeVar("T")


class _DropIn(Struct, frozen=True, forbid_unknown_fields=True):
    """A file of ``drop_in_folder``: models more, and nothing else."""

    model: list[ModelConfig] = []


def load(
    path: Path | None, *, env: Mapping[str, str] = os.environ, flags: Mapping[str, Any] | None = None
) -> Config:
    """Read and check the configuration. ``flags`` maps dotted keys ("server.port") to given values.

    A drop-in's model of a name that the file has is left out, with a line in the log. Raises ConfigError
    naming file and key.
    """
    raw = read_toml(path) if path else {}
    for key, value in {**_from_env(env), **(flags or {})}.items():
        _set(raw, key, value)
    config = _converted(raw, Config, path)
    check(config, path)
    return _with_drop_ins(_anchored(config, path.parent), path) if path else config


def with_model(config: Config, model: ModelConfig, where: Path | None = None) -> Config:
    """The configuration with one model more. Raises ConfigError, as ``load`` would, naming the key."""
    more = msgspec.structs.replace(config, model=[*config.model, model])
    check(more, where)
    return more


def drop_in_folder(file: Path) -> Path:
    """Where a configuration's drop-ins lie: ``muxd.d`` beside ``muxd.toml``."""
    return file.with_suffix(".d")


def _with_drop_ins(config: Config, file: Path) -> Config:
    """By their names' order; each is checked beside those before it, so that the one at fault is named."""
    taken = {name: file for model in config.model for name in (model.name, *model.aliases)}
    for drop_in in _drop_ins(drop_in_folder(file)):
        for model in _models(drop_in):
            names = (model.name, *model.aliases)
            if (other := next((taken[name] for name in names if name in taken), None)) is not None:
                _log.error(
                    "%s: model.name (%s): %s has a model of that name, which is the one that is served; "
                    "take one of them out", drop_in, model.name, other,
                )  # fmt: skip
                continue
            config = with_model(config, model, drop_in)
            taken |= dict.fromkeys(names, drop_in)
    return config


def _drop_ins(folder: Path) -> list[Path]:
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"cannot read {folder}: {error.strerror}") from None
    return [folder / name for name in names if name.endswith(".toml") and not name.startswith(".")]


def _models(drop_in: Path) -> list[ModelConfig]:
    """Raises ConfigError naming the file, and the key where there is another than ``[[model]]``."""
    raw = read_toml(drop_in)
    if other := next((key for key in raw if key != "model"), None):
        raise ConfigError(
            f"{drop_in}: {other}: a drop-in has [[model]] tables only; put it into the file beside its folder"
        )
    return [_anchored_model(model, drop_in.parent) for model in _converted(raw, _DropIn, drop_in).model]


def _converted(raw: dict[str, Any], kind: type[T], path: Path | None) -> T:
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'configuration'}: {explained(str(error))}") from None


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
    tables = {one.name: one.type for one in msgspec.structs.fields(Config) if isinstance(one.type, type)}
    rooms = {room: struct for room, struct in tables.items() if issubclass(struct, Struct)}
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
    models = [_anchored_model(model, folder) for model in config.model]
    profile = _anchor(config.placement.profile, folder)
    placement = msgspec.structs.replace(config.placement, profile=profile)
    server = config.server
    files = {name: _anchor(getattr(server, name), folder) for name in ("keys", "tls_cert", "tls_key")}
    server = msgspec.structs.replace(server, **files)
    return msgspec.structs.replace(config, server=server, model=models, placement=placement)


def _anchored_model(model: ModelConfig, folder: Path) -> ModelConfig:
    names = ("path", "lora", "chat_template")
    return msgspec.structs.replace(model, **{name: _anchor(getattr(model, name), folder) for name in names})


def _anchor(text: str, folder: Path) -> str:
    return str(folder.absolute() / Path(text).expanduser()) if text else ""
