"""What one model is asked, and traffic.toml, which says it for each model.

duration = 3600                       # seconds, unless --duration is given

[[model]]
name = "chat"                         # required, different for every model
rate = 2.0                            # required: requests a second
lengths = "lognormal:4000,150"        # as --lengths, which holds for models that do not say
cv = 4.0                              # as --cv: variation of the gaps
phases = [[0, 60, 1.0], [60, 120, 0.0]]   # from second, to second, times the rate; elsewhere 1
phases_every = 120                    # they begin again after so many seconds; 0: they do not
day = {depth = 0.8, period = 86400, peak = 43200}   # the rate goes up and down by so much of itself

"""

from pathlib import Path

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from muxd.config_load import explained, read_toml
from muxd.errors import ConfigError
from muxd.sim.lengths import lengths

MOST_CV = 100.0  # beyond, nearly all that is drawn are bursts of no length
_MOST_FACTOR = 1000.0

Times = NDArray[np.float64]
Phase = tuple[float, float, float]  # from, to, factor


class Day(Struct, frozen=True, forbid_unknown_fields=True):
    """The rate times 1 + depth · cos(2π (t - peak) / period): over a whole period the mean stays the rate."""

    depth: float
    period: float = 86_400.0
    peak: float | None = None  # seconds; half a period: noon where time 0 is midnight


class ModelTraffic(Struct, frozen=True, forbid_unknown_fields=True):
    """One ``[[model]]``."""

    name: str
    rate: float
    lengths: str = "sharegpt"
    cv: float = 1.0
    phases: list[Phase] = []
    phases_every: float = 0.0
    day: Day | None = None

    def factor(self, times: Times) -> Times:
        """What the rate is multiplied with at each time."""
        found = self._phase(times)
        if self.day is None:
            return found
        peak = self.day.period / 2 if self.day.peak is None else self.day.peak
        return found * (1 + self.day.depth * np.cos(2 * np.pi * (times - peak) / self.day.period))

    def highest(self, duration: float) -> float:
        """No factor in [0, duration) is above it. A day counts with its peak, reached or not."""
        edges = np.array([0.0, *(edge for phase in self.phases for edge in phase[:2])])
        return float(self._phase(edges[edges < duration]).max()) * (1 + (self.day.depth if self.day else 0))

    def _phase(self, times: Times) -> Times:
        if not self.phases:
            return np.ones_like(times)
        starts, ends, factors = np.array(self.phases, dtype=np.float64).T
        within = times % self.phases_every if self.phases_every else times
        index = np.searchsorted(starts, within, side="right") - 1
        return np.where((index >= 0) & (within < ends[index]), factors[index], 1.0)


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    model: list[ModelTraffic]
    duration: float | None = None


def read(path: Path, *, cv: float, lengths: str) -> tuple[list[ModelTraffic], float | None]:
    """The models, with ``cv`` and ``lengths`` where they do not say their own, and the file's duration.

    Raises ConfigError naming file, model and key.
    """
    raw = read_toml(path)
    tables = raw.get("model")
    if isinstance(tables, list):
        common = {"cv": cv, "lengths": lengths}
        raw["model"] = [{**common, **one} if isinstance(one, dict) else one for one in tables]
    try:
        file = msgspec.convert(raw, _File)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {explained(str(error))}") from None
    if not file.model:
        raise ConfigError(f"{path} has no [[model]] table")
    check(file.model, f"{path}: ")
    return file.model, file.duration


def check(models: list[ModelTraffic], where: str = "") -> None:
    """Raises ConfigError naming model and key, after ``where``."""
    names = [model.name for model in models]
    for number, model in enumerate(models):
        if not model.name or model.name in names[:number]:
            raise ConfigError(f"{where}model[{number}].name: {model.name!r} is empty or another model's")
        key = f"{where}model {model.name!r}: "
        if not 0 < model.rate < float("inf"):
            raise ConfigError(f"{key}rate: {model.rate:g} is not above 0 and finite")
        if not 0 < model.cv <= MOST_CV:
            raise ConfigError(f"{key}cv: {model.cv:g} is not above 0 and at most {MOST_CV:g}")
        lengths(model.lengths, key=f"{key}lengths:")
        _check_phases(model, key)
        if model.day:
            _check_day(model.day, key)


def _check_phases(model: ModelTraffic, key: str) -> None:
    every = model.phases_every
    if not 0 <= every < float("inf"):
        raise ConfigError(f"{key}phases_every: {every:g} is not 0 (once) or a number of seconds")
    before = 0.0
    for number, (start, end, factor) in enumerate(model.phases):
        place = f"{key}phases[{number}]: "
        if not start < end < float("inf"):
            raise ConfigError(f"{place}it ends at {end:g}, which is not after its beginning, {start:g}")
        if start < before:
            raise ConfigError(
                f"{place}it begins at {start:g}, before {before:g}: give phases in order of time"
            )
        if not 0 <= factor <= _MOST_FACTOR:
            raise ConfigError(f"{place}the factor {factor:g} is not between 0 and {_MOST_FACTOR:g}")
        if every and end > every:
            raise ConfigError(f"{place}it ends at {end:g}, after phases_every = {every:g}")
        before = end


def _check_day(day: Day, key: str) -> None:
    if not 0 <= day.depth <= 1:
        raise ConfigError(
            f"{key}day.depth: {day.depth:g} is not between 0 (no day) and 1 (no request at night)"
        )
    if not 0 < day.period < float("inf"):
        raise ConfigError(f"{key}day.period: {day.period:g} is not above 0 and finite")
    if day.peak is not None and not 0 <= day.peak <= day.period:
        raise ConfigError(f"{key}day.peak: {day.peak:g} is not within the period, {day.period:g} s")
