"""Where a load, unload or move is, as plain data: the roster says it, the local door carries it to muxctl."""

from typing import Literal

from msgspec import Struct

Stage = Literal[
    "draining", "stopping", "unloaded", "reading", "weights", "starting", "ready", "moved", "asleep"
]
LAST: tuple[Stage, ...] = ("ready", "unloaded", "moved", "asleep")


class Step(Struct, frozen=True):
    """``done`` of ``total`` bytes while stage is "weights", of sequences while it is "draining", else 0.

    The last is one of ``LAST``.
    """

    model: str
    stage: Stage
    done: int = 0
    total: int = 0
