"""Which of a base's adapters can be served: each is read by itself, and one that cannot be costs nobody else
anything."""

import logging
from collections.abc import Sequence
from pathlib import Path

from msgspec import Struct

from muxd.config import ModelConfig
from muxd.errors import MuxdError
from muxd.models.lora import Lora, read_lora
from muxd.models.spec import ModelSpec

_log = logging.getLogger("muxd.fleet")


class Loras(Struct, frozen=True):
    """By name: the numbers and adapters that were read, and of the others why not."""

    numbers: dict[str, int] = {}
    read: dict[int, Lora] = {}
    refused: dict[str, str] = {}


def read_loras(adapters: Sequence[ModelConfig], spec: ModelSpec, *, gpu: bool) -> Loras:
    """Slow: every number is looked at. Raises nothing."""
    numbers: dict[str, int] = {}
    read: dict[int, Lora] = {}
    refused: dict[str, str] = {}
    for number, config in enumerate(adapters, 1):
        try:
            read[number] = _read(config, spec, gpu=gpu)
            numbers[config.name] = number
        except Exception as error:  # whatever is in the folder, base and other adapters go on
            refused[config.name] = unread(error, config.name, config.lora)
        if config.name in refused:
            _log.error("%s is not served: %s", config.name, refused[config.name])
    return Loras(numbers, read, refused)


def unread(error: Exception, model: str, folder: str) -> str:
    """Why what is in a folder cannot be served, in a sentence; the log says more of a defect."""
    if isinstance(error, MuxdError):
        return error.message
    if isinstance(error, OSError):
        return f"{error.filename or folder} cannot be read: {error.strerror or error}"
    _log.error("%s: a defect while its folder was read", model, exc_info=error)
    return f"{folder} cannot be read: {type(error).__name__}: {error}"


def _read(config: ModelConfig, spec: ModelSpec, *, gpu: bool) -> Lora:
    if gpu:
        raise MuxdError(
            f"model.lora ({config.name}): adapters are served on the CPU only so far, not on a GPU"
        )
    return read_lora(Path(config.lora).expanduser(), spec)
