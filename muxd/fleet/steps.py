"""Where a load or an unload is, as plain data: the roster says it, the local door carries it to muxctl."""

from typing import Literal

from msgspec import Struct

Stage = Literal["draining", "stopping", "unloaded", "reading", "weights", "starting", "ready"]


class Step(Struct, frozen=True):
    """``done`` of ``total`` bytes while stage is "weights", of sequences while it is "draining", else 0.

    "ready" and "unloaded" are the last.
    """

    model: str
    stage: Stage
    done: int = 0
    total: int = 0
