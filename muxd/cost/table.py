"""Seconds of a batch by interpolation in a measured grid. Pure: numpy, no clock, no torch.

Used by the simulator for every batch, so the grids are plain lists and a look-up is a few bisections.
"""

from bisect import bisect_right
from collections.abc import Mapping
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muxd.cost.law import Memory, Parts, parts
from muxd.cost.profile import Grid, ModelProfile, Profile, load
from muxd.errors import ConfigError

_FAR = 1000  # times the last measured point: where extrapolation ends


def monotone(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """[shares, rows, contexts]: more tokens or context never cost less, a larger share never more.

    Noise only ever adds time, so a point above one that should cost more is lowered to it. (MuxServe's
    published table of an A100 has cells up to eight times their neighbours.)
    """
    cells = seconds
    for axis in (1, 2):
        cells = np.flip(np.minimum.accumulate(np.flip(cells, axis), axis), axis)
    return np.minimum.accumulate(cells, 0)


def extended(grid: Grid) -> tuple[NDArray[np.float64], list[int], list[int]]:
    """The monotone cells with one far point more on each axis, and both axes.

    The last slope goes on, raised where a slope of less work or more share is steeper, so that what lies
    beyond the measured points is monotone, too.
    """
    cells, rows, contexts = monotone(np.array(grid.seconds)), grid.rows, grid.contexts
    cells = _far(cells, rows)
    # The same along contexts, seen from the side.
    cells = _far(cells.swapaxes(1, 2), contexts).swapaxes(1, 2)
    return cells, [*rows, _FAR * (rows[-1] + 1)], [*contexts, _FAR * (contexts[-1] + 1)]


def _far(cells: NDArray[np.float64], axis: list[int]) -> NDArray[np.float64]:
    slope = np.zeros_like(cells[:, -1])
    if len(axis) > 1:
        slope = (cells[:, -1] - cells[:, -2]) / (axis[-1] - axis[-2])
    slope = np.maximum.accumulate(slope, 1)
    slope = np.flip(np.maximum.accumulate(np.flip(slope, 0), 0), 0)
    far = cells[:, -1] + slope * (_FAR * (axis[-1] + 1) - axis[-1])
    return np.concatenate([cells, far[:, None]], 1)


class Surface:
    """One grid, cleaned and extended. Between points linear; below the first one the first value holds, as
    the floor of any batch; shares above or below the measured ones cost what the nearest one does."""

    def __init__(self, grid: Grid):
        cells, self._rows, self._contexts = extended(grid)
        self._shares = grid.shares
        self._cells: list[list[list[float]]] = cells.tolist()

    def seconds(self, rows: float, context: float, share: int) -> float:
        """At ``share`` percent; shares off the grid lie between their neighbours."""
        return self.curve(rows, share).seconds(context)

    def curve(self, rows: float, share: int) -> "Line":
        """Over contexts."""
        i, part = _place(self._shares, share)
        planes = self._cells[i : i + 1] if part == 0.0 else self._cells[i : i + 2]
        if part == 1.0:
            planes, part = planes[1:], 0.0
        j, along = _place(self._rows, rows)
        pairs = [(plane[j], plane[j + 1] if along else plane[j]) for plane in planes]
        return Line(self._contexts, pairs, along, part)


class Line:
    """A surface where rows and share are known: asked for every step of the same sequences."""

    __slots__ = ("_above", "_along", "_below", "_contexts", "_part")

    def __init__(
        self,
        contexts: list[int],
        pairs: list[tuple[list[float], list[float]]],
        along: float,
        part: float,
    ):
        """``pairs``: at the share below, and above if there is one, the lines of fewer and of more rows."""
        self._contexts = contexts
        self._below, self._above = pairs[0], pairs[-1]
        self._along, self._part = along, part

    def seconds(self, context: float) -> float:
        j, at = _place(self._contexts, context)
        below = self._plane(self._below, j, at)
        if self._part == 0.0:
            return below
        return below + self._part * (self._plane(self._above, j, at) - below)

    def _plane(self, lines: tuple[list[float], list[float]], j: int, at: float) -> float:
        first = _line(lines[0], j, at)
        return first if self._along == 0.0 else first + self._along * (_line(lines[1], j, at) - first)


def _ahead(steps: int, step: float, host: float) -> float:
    """Mean seconds of a step among ``steps`` of which two may be under way: the host's part is paid once, or
    once in two steps where it is the longer one."""
    if host <= step:
        return step + host / steps
    return ((steps + 1) // 2 * (step + host) + (steps % 2 == 0) * step) / steps


def _place(axis: list[int], value: float) -> tuple[int, float]:
    """Index of the interval and how far into it, 0 to 1."""
    if len(axis) == 1 or value <= axis[0]:
        return 0, 0.0
    i = bisect_right(axis, value) - 1
    if i > len(axis) - 2:
        i = len(axis) - 2
    part = (value - axis[i]) / (axis[i + 1] - axis[i])
    return i, part if part < 1.0 else 1.0


def _line(line: list[float], j: int, along: float) -> float:
    return line[j] if along == 0.0 else line[j] + along * (line[j + 1] - line[j])


class Steps:
    """Decode steps of so many sequences of one model on one share."""

    __slots__ = ("_batch", "_read", "curve")

    def __init__(self, curve: Line, batch: int, reader: "Reader"):
        self.curve = curve
        self._batch, self._read = batch, reader

    def parts(self, read: int) -> Parts:
        """Of the step that reads K and V of so many tokens, of all its sequences."""
        return self._read.parts(self.curve.seconds(read / self._batch), read, self._batch, self._batch)


class Reader:
    """What batches of one model on one share take from memory."""

    __slots__ = ("_fixed", "_known", "_kv", "_speed", "_state", "_weights")

    def __init__(self, profile: ModelProfile, memory: Memory | None, share: int):
        self._known = memory is not None
        self._speed = inf if memory is None else memory.alone(share)
        self._fixed, self._weights, self._kv = profile.fixed, profile.read, profile.shape.kv_bytes
        self._state = 2 * profile.shape.state_bytes  # read, and written

    def parts(self, seconds: float, read: float, tokens: int, sequences: int = 0) -> Parts:
        """Of a batch's ``seconds`` alone, of so many ``tokens`` of so many sequences, that reads K and V of
        others. Nothing where nobody knows the device's memory."""
        if self._known:
            kv = self._kv * read + self._state * sequences
            return parts(seconds, self._fixed, self._weights(tokens), kv, self._speed)
        return parts(seconds, seconds, 0.0, 0.0, inf)


class CostTable:
    """Costs of every model of a profile; ``like`` gives further names to profiled models.

    Raises ConfigError when ``like`` names a model that is not there.
    """

    def __init__(self, profile: Profile, like: Mapping[str, str] | None = None, source: str = "the profile"):
        self._source = source
        self.device = profile.device
        self._models = dict(profile.models)
        for name, original in (like or {}).items():
            self._models[name] = self.model(original)
        grids = {id(m): m for m in self._models.values()}
        surfaces = {key: (Surface(m.prefill), Surface(m.decode)) for key, m in grids.items()}
        self._surfaces = {name: surfaces[id(m)] for name, m in self._models.items()}
        self._steps: dict[tuple[str, int, int], Steps] = {}  # a simulation asks for them again and again

    @classmethod
    def read(cls, path: Path, like: Mapping[str, str] | None = None) -> "CostTable":
        return cls(load(path), like, str(path))

    @property
    def models(self) -> list[str]:
        return list(self._models)

    def model(self, name: str) -> ModelProfile:
        """Raises ConfigError for a model that was not measured."""
        try:
            return self._models[name]
        except KeyError:
            known = ", ".join(self._models) or "none"
            raise ConfigError(
                f"{self._source} has no model {name!r}, only: {known}; measure it with "
                f"`muxd profile FOLDER --name {name}` or say --like {name}=MODEL"
            ) from None

    def prefill(self, model: str, tokens: int, context: float, share: int, chunks: int = 1) -> float:
        """Seconds of a batch with ``tokens`` new tokens, ``context`` tokens before them on average."""
        return (
            self._surfaces[model][0].seconds(tokens, context, share)
            + (chunks - 1) * self._models[model].chunk_seconds
        )

    def decode(self, model: str, batch: int, context: float, share: int) -> float:
        """Seconds of one step of ``batch`` sequences with ``context`` tokens each on average."""
        return self.steps(model, batch, share).curve.seconds(context)

    def steps(self, model: str, batch: int, share: int) -> Steps:
        """Of ``batch`` sequences, whatever their contexts."""
        key = (model, batch, share)
        found = self._steps.get(key)
        if found is None:
            curve = self._surfaces[model][1].curve(batch, share)
            found = self._steps[key] = Steps(curve, batch, self._reader(model, share))
        return found

    def parts(
        self, model: str, seconds: float, read: float, share: int, tokens: int, sequences: int = 0
    ) -> Parts:
        """What of a batch's ``seconds`` alone on ``share`` percent, of so many ``tokens``, comes from memory.
        ``read``: tokens, of all its sequences, whose K and V are read."""
        return self._reader(model, share).parts(seconds, read, tokens, sequences)

    def _reader(self, model: str, share: int) -> Reader:
        return Reader(self._models[model], self.device.memory, share)

    # ---- one request alone on the device: the base of SLOs ------------------------------------------

    def alone_ttft(self, model: str, prompt: int) -> float:
        """Seconds to the first token at 100 % share and an empty queue, as one batch."""
        extra = self.model(model).overhead
        return self.prefill(model, prompt, 0, 100) + extra.request + extra.batch + extra.token

    def alone_tpot(self, model: str, prompt: int, output: int) -> float:
        """Seconds a token after the first, at the context halfway through the answer."""
        extra = self.model(model).overhead
        step, host = self.decode(model, 1, prompt + output / 2, 100), extra.batch + extra.token
        if not self.device.gpu:
            return step + host
        return _ahead(max(1, output - 1), step, host)

    def alone(self, model: str, prompt: int, output: int) -> float:
        """Seconds from arrival to the last token."""
        return self.alone_ttft(model, prompt) + (output - 1) * self.alone_tpot(model, prompt, output)
