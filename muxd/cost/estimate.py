"""What everybody who plans may ask of a cost model, whatever it was made from. Pure.

Implementations: ``published.Published`` (a measured table of an A100), ``analytic.Roofline`` (shapes and
peaks), ``profiled.Profiled`` (a profile measured by `muxd profile`).
"""

from collections.abc import Iterable
from typing import Literal, Protocol

from msgspec import Struct

from muxd.cost.experts import Sparse
from muxd.cost.law import Memory
from muxd.errors import ConfigError

# measured: a cell of a table as it stands there. interpolated: between cells, or a cell that contradicted
# others and was lowered to them. extrapolated: outside the measured cells. roofline: nothing was measured.
Source = Literal["measured", "interpolated", "extrapolated", "roofline"]


class Estimate(Struct, frozen=True):
    """Seconds of one batch, above 0 and finite, and where the number comes from."""

    seconds: float
    source: Source


class Reading(Struct, frozen=True):
    """What every batch of a model reads from memory, for ``muxd.cost.law``: bytes of weights, and of K and V
    a token of context, on each of its devices. ``fixed``: seconds that neither share nor memory change.
    ``sparse``: weights of experts, beside ``weights``. ``state``: bytes read and written of each sequence's
    state."""

    weights: float
    token: float
    fixed: float = 0.0
    sparse: Sparse | None = None
    state: float = 0.0

    def bytes_of(self, tokens: float) -> float:
        """Of weights, by a batch of so many tokens."""
        return self.weights + (self.sparse.read(tokens) if self.sparse else 0.0)


class Costs(Protocol):
    """Seconds of a batch that runs alone on ``gpus`` devices, on ``share`` percent of each.

    More prompts, tokens or context never cost less, a larger share never more. No promise over ``gpus``: a
    small batch may well be slower on more devices. Unknown models, degrees that are not in ``degrees``,
    counts below 1, a negative context and shares outside 1 to 100 raise ConfigError that says what is known.
    Shares between or outside ``shares`` are answered, too.
    """

    @property
    def memory(self) -> Memory | None:
        """Of each device; None where nobody knows it."""
        ...

    def models(self) -> list[str]: ...

    def reading(self, model: str, gpus: int) -> Reading: ...

    def degrees(self, model: str) -> list[int]:
        """Tensor-parallel degrees that are known, ascending."""
        ...

    def shares(self, model: str, gpus: int) -> list[int]:
        """Percent, ascending: the shares that batches have there, where nobody knows the device's."""
        ...

    def prefill(self, model: str, gpus: int, share: int, batch: int, length: int) -> Estimate:
        """Seconds of one batch of ``batch`` prompts of ``length`` tokens each."""
        ...

    def decode(self, model: str, gpus: int, share: int, batch: int, context: float) -> Estimate:
        """Seconds of one step of ``batch`` sequences with ``context`` tokens each on average."""
        ...


# ---- what implementations refuse, in one wording ------------------------------------------------------


def check_query(model: str, share: int, batch: int, tokens: float, least: int) -> None:
    """Raises ConfigError for numbers no batch can have. ``least``: the fewest tokens."""
    if not 1 <= share <= 100:
        raise ConfigError(f"cost of {model}: share {share} must be 1 to 100 percent")
    if batch < 1:
        raise ConfigError(f"cost of {model}: batch {batch} must be at least 1")
    if not least <= tokens < float("inf"):
        raise ConfigError(f"cost of {model}: {tokens} tokens must be at least {least} and finite")


def model_error(model: str, known: Iterable[str], source: str, remedy: str) -> ConfigError:
    """For the caller to raise."""
    return ConfigError(f"{source} has no model {model!r}, only: {', '.join(known) or 'none'}; {remedy}")


def degree_error(model: str, gpus: int, known: list[int], remedy: str) -> ConfigError:
    """For the caller to raise."""
    return ConfigError(f"no costs of {model} on {gpus} GPUs, only on {', '.join(map(str, known))}: {remedy}")
