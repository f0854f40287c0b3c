"""The numbers a sampler may be given, whoever says them: a request, or the defaults of a model folder. Pure.

A sampler computes in float32: what would be infinite or nothing there ends the request at the door, or is not
taken from the file.
"""

from collections.abc import Sequence
from math import isfinite
from typing import Any, NamedTuple


class Range(NamedTuple):
    """[low, high], or with ``above`` (low, high]; ``whole`` numbers only."""

    low: float
    high: float
    above: bool = False
    whole: bool = False

    def __str__(self) -> str:
        return f"{'above' if self.above else 'from'} {self.low:g} to {self.high:g}"


RANGES = {
    "temperature": Range(0, 2),
    "top_p": Range(0, 1, above=True),
    "top_k": Range(-1, 2**31 - 1, whole=True),  # -1 and 0: off
    "min_p": Range(0, 1),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    # A logit divided by less could overflow.
    "repetition_penalty": Range(0.01, 100),
}


def problem(name: str, value: Any) -> str:
    """Why ``value`` is none for this sampling number, as the end of a sentence; "" if it is one."""
    allowed = RANGES[name]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "is not a number"
    if not (isinstance(value, int) or isfinite(value)):
        return "is not finite"
    if value < allowed.low or value > allowed.high or (allowed.above and value == allowed.low):
        return f"does not lie in the range {allowed}"
    return "is not a whole number" if allowed.whole and value != int(value) else ""


def first_outside(ids: Sequence[int], vocab_size: int) -> int | None:
    """Index of the first id that no row of the vocabulary has; None when all have one."""
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return None  # the usual case, at the speed of C
    return next((i for i, token in enumerate(ids) if not 0 <= token < vocab_size), None)
