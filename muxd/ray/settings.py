"""What ``serve run muxd.ray:app`` is given, and the files of the plan it names."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from muxd.errors import ConfigError

_Count = Annotated[int, Meta(ge=0)]
_Amount = Annotated[float, Meta(ge=0, lt=1e9)]  # also refuses nan


class Arguments(Struct, frozen=True, forbid_unknown_fields=True):
    """Every argument may also be text: ``hosts=3``."""

    plan: (
        str  # a muxd.toml for every host, or a folder of host-0.toml, host-1.toml ... by `muxctl plan --out`
    )
    hosts: _Count = 0  # nodes that are asked for, by the resource "muxd"; 0: as many as there are
    gpus: _Amount = 0.0  # of each host, which its muxd gets
    ingresses: Annotated[int, Meta(ge=1)] = 1  # processes that clients' requests go through
    port: Annotated[int, Meta(ge=0, le=65535)] = 8010  # of a host's muxd; 0: a free one
    socket: str = ""  # admin socket of a host's muxd, as server.socket
    drain: _Amount = 60.0  # seconds that streams have to end where a node is taken away
    replan: _Amount = 0.0  # seconds between two looks whether models should change their host; 0: they stay


def arguments(given: Mapping[str, object]) -> Arguments:
    """Raises ConfigError naming the argument."""
    try:
        return msgspec.convert(dict(given), Arguments, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"arguments of muxd.ray:app: {error}") from None


def plan_files(plan: str) -> dict[str, str]:
    """File name -> text, in the order of the hosts. Raises ConfigError.

    The text goes to the hosts, so paths in it have to be absolute, and to be there on every host.
    """
    place = Path(plan).expanduser()
    try:
        if place.is_dir():
            found = sorted(place.glob("host-*.toml"), key=lambda file: (len(file.name), file.name))
            if not found:
                raise ConfigError(f"plan: {place} has no host-0.toml; `muxctl plan --out` writes such files")
            return {file.name: file.read_text() for file in found}
        return {place.name: place.read_text()}
    except OSError as error:
        raise ConfigError(f"plan: cannot read {place}: {error.strerror or error}") from None


def model_names(text: str) -> list[str]:
    """Of the models of a muxd.toml; none of one that is broken, which muxd says better."""
    try:
        tables = tomllib.loads(text).get("model", [])
    except tomllib.TOMLDecodeError:
        return []
    return [str(one["name"]) for one in tables if isinstance(one, dict) and "name" in one]
