"""What a unit has learnt of its models while it ran, as plain data: exported, kept in a file, and taken up by
the next run. Pure; ``fleet/learnt.py`` has the file.

No prompts and no tokens are in it. Every number is one that can be: what a file says else is refused as it is
decoded, and what was measured else is not exported.
"""

from typing import Annotated

from msgspec import Meta, Struct

MOST = 1e9  # seconds, tokens or requests: beyond lies no measurement
Amount = Annotated[float, Meta(ge=0, le=MOST)]


class Mean(Struct, frozen=True, forbid_unknown_fields=True):
    """Sum of weighted values, and of the weights; both 0: nothing was seen. Raises ValueError where their
    ratio is no measurement."""

    total: Amount = 0.0
    weight: Amount = 0.0

    def __post_init__(self) -> None:
        if self.total > MOST * self.weight:
            raise ValueError("total: too much for this weight")


class LaneCosts(Struct, frozen=True, forbid_unknown_fields=True):
    """Of a lane's batches; 0: none was seen. Seconds, and tokens of an answer."""

    token_seconds: Amount = 0.0
    step_seconds: Amount = 0.0
    pace: Amount = 0.0
    answer_tokens: Amount = 0.0


class Seen(Struct, frozen=True, forbid_unknown_fields=True):
    """By a forecast: how long sequences stay, what of a prompt is computed, how far off estimates were."""

    stay: Mean = Mean()
    fresh: Mean = Mean()
    real: Mean = Mean()
    miss: Mean = Mean()


class Learnt(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one model. ``quota``: head blocks; None where the policy's do not move."""

    quota: Annotated[int, Meta(ge=0, le=2**53)] | None = None
    costs: LaneCosts = LaneCosts()
    seen: Seen = Seen()


def mean(total: float, weight: float) -> Mean:
    """Nothing, where that is no measurement."""
    sound = 0 <= total <= MOST and 0 <= weight <= MOST and total <= MOST * weight
    return Mean(total, weight) if sound else Mean()


def amount(value: float) -> float:
    return min(max(value, 0.0), MOST)
