"""Prefill and decode seconds over the batch, of a model at one degree and share: what units are made of."""

from typing import NamedTuple

from muxd.cost.estimate import Costs

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
MOST = float(_BATCHES[-1])


class Curve(NamedTuple):
    """Straight lines between powers of two; seconds ascend with the batch.

    ``speed``: bytes a second that a decode step moves on each device, 0 where nobody knows.
    """

    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    speed: tuple[float, ...]

    def at(self, batch: float) -> tuple[float, float, float]:
        """Seconds to prefill the batch and of one decode step of it, and its speed; ``batch``: 1 to MOST."""
        i = min(int(batch).bit_length() - 1, len(_BATCHES) - 2)
        part = (batch - _BATCHES[i]) / _BATCHES[i]
        prefill, decode, speed = self
        return (
            prefill[i] + part * (prefill[i + 1] - prefill[i]),
            decode[i] + part * (decode[i + 1] - decode[i]),
            speed[i] + part * (speed[i + 1] - speed[i]),
        )

    def needed(self, rate: float, wait: float, steps: float) -> float:
        """The least batch b with ``b >= rate * (wait + steps * decode(b))``; MOST if there is none.

        The difference is linear between two points, so the first interval where it turns has the answer.
        """
        decode, before = self.decode, 0.0
        for i, batch in enumerate(_BATCHES):
            lacking = rate * (wait + steps * decode[i]) - batch
            if lacking <= 0:
                if i == 0:
                    return 1.0
                start = _BATCHES[i - 1]
                return start + (batch - start) * before / (before - lacking)
            before = lacking
        return MOST


def between(one: Curve, two: Curve, part: float) -> Curve:
    """``one`` for a part of the time, ``two`` for the other ``part``."""

    def mixed(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
        return tuple([x + part * (y - x) for x, y in zip(a, b, strict=True)])

    return Curve(one.prefill, mixed(one.decode, two.decode), mixed(one.speed, two.speed))


class Curves:
    """Curves by demand, computed once. Context: the prompt and half the answer."""

    def __init__(self, costs: Costs):
        self._costs = costs
        self._known: dict[tuple[str, int, int, int, int, int], Curve] = {}

    def get(
        self, cost: str, gpus: int, decode_share: int, prompt: int, output: int, prefill_share: int
    ) -> Curve:
        """``cost``: the model's name in the cost model. Raises ConfigError as ``Costs`` do."""
        key = (cost, gpus, decode_share, prompt, output, prefill_share)
        if key not in self._known:
            context = prompt + output / 2
            costs = self._costs
            decode = [costs.decode(cost, gpus, decode_share, b, context).seconds for b in _BATCHES]
            read = costs.reading(cost, gpus)
            self._known[key] = Curve(
                tuple(costs.prefill(cost, gpus, prefill_share, b, prompt).seconds for b in _BATCHES),
                tuple(decode),
                tuple(
                    (read.bytes_of(b) + (read.token * context + read.state) * b) / taken
                    for b, taken in zip(_BATCHES, decode, strict=True)
                ),
            )
        return self._known[key]
