"""Which of a base's adapters can be served: each is read by itself, and one that cannot be costs nobody else
anything."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from muxd.config import ModelConfig
from muxd.errors import MuxdError
from muxd.models.lora import Lora, read_lora
from muxd.models.safetensors_index import seal
from muxd.models.spec import ModelSpec
from muxd.models.weights import WeightPlan

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


def changed(loras: Loras, plan: WeightPlan) -> dict[str, str]:
    """Adapters whose file is another one than when ``plan`` was made, or none, with the reason by name: they
    cannot be read where they were to be, and their base is served without them."""
    found = {}
    for name, number in loras.numbers.items():
        files = {stored.file for part in loras.read[number].parts for stored in (part.a, part.b)}
        try:
            wrong = [file for file in sorted(files) if seal(file) != plan.seals[file]]
        except MuxdError as error:
            found[name] = error.message
            continue
        if wrong:
            found[name] = (
                f"{wrong[0]} is another file than when it was read: `muxctl unload` its base and load it"
            )
    return found


def without(loras: Loras, refused: Mapping[str, str]) -> Loras:
    """``refused``: adapters that are read no more, and why."""
    numbers = {name: number for name, number in loras.numbers.items() if name not in refused}
    read = {number: loras.read[number] for number in numbers.values()}
    return Loras(numbers, read, {**loras.refused, **refused})


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
