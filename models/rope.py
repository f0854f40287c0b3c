"""Rotary position embedding as configured: base, scaling, and the inverse frequencies they give.

Reads the old layout of config.json (``rope_theta``, ``rope_scaling``, ``rope_local_base_freq``), the one of
transformers 5 (``rope_parameters``), and files that have both. Pure numpy, so that a spec needs no torch.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from muxd.models.config_file import Fields, shown

_KIND = ("rope_type", "type")
Frequencies = NDArray[np.float32]  # radians per position, [head_dim / 2]


class LinearScaling(Struct, frozen=True):
    """Position interpolation (Chen et al. 2023): every wavelength is stretched alike."""

    factor: float

    def stretched(self, plain: Frequencies, theta: float) -> Frequencies:
        return plain / np.float32(self.factor)


class Llama3Scaling(Struct, frozen=True):
    """Llama 3.1 report, as in the reference ``apply_scaling``: by wavelength against the trained context.

    Long wavelengths are stretched, short ones kept, linear between.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int

    def stretched(self, plain: Frequencies, theta: float) -> Frequencies:
        wavelength = 2 * math.pi / plain
        low = self.original_positions / self.low_freq_factor
        high = self.original_positions / self.high_freq_factor
        span = self.high_freq_factor - self.low_freq_factor
        smooth = (self.original_positions / wavelength - self.low_freq_factor) / span
        between = (1 - smooth) * plain / self.factor + smooth * plain
        stretched = np.where(
            wavelength > low, plain / self.factor, np.where(wavelength < high, plain, between)
        )
        return stretched.astype(np.float32)


class YarnScaling(Struct, frozen=True):
    """YaRN (Peng et al. 2023), sections 3.2 and 3.4: by turns over the trained context.

    Pairs that turn less than ``beta_slow`` times are stretched, those that turn more than ``beta_fast`` times
    are kept, linear between in the index of the pair; ``magnitude`` multiplies queries and keys.
    """

    factor: float
    beta_fast: float
    beta_slow: float
    original_positions: int
    magnitude: float

    def stretched(self, plain: Frequencies, theta: float) -> Frequencies:
        count = len(plain)

        def pair(turns: float) -> float:
            """The index of the pair, not rounded, that turns so often."""
            return count * math.log(self.original_positions / (turns * 2 * math.pi)) / math.log(theta)

        first = max(math.floor(pair(self.beta_fast)), 0)
        last = min(math.ceil(pair(self.beta_slow)), 2 * count - 1)
        ramp = (np.arange(count, dtype=np.float32) - first) / np.float32((last - first) or 0.001)
        part: Frequencies = np.clip(ramp, 0, 1)
        return plain / np.float32(self.factor) * part + plain * (1 - part)


class FactorScaling(Struct, frozen=True):
    """LongRoPE (Ding et al. 2024): every pair has its own factor. GGUF files may hold them, too."""

    factors: tuple[float, ...]
    magnitude: float

    def stretched(self, plain: Frequencies, theta: float) -> Frequencies:
        factors: Frequencies = np.asarray(self.factors, dtype=np.float32)
        return plain / factors


Scaling = LinearScaling | Llama3Scaling | YarnScaling | FactorScaling


class Rope(Struct, frozen=True):
    """Base of the geometric series of frequencies, and its scaling."""

    theta: float
    scaling: Scaling | None = None

    @property
    def magnitude(self) -> float:
        """What cosines and sines are multiplied by."""
        return self.scaling.magnitude if isinstance(self.scaling, YarnScaling | FactorScaling) else 1.0

    @property
    def positions(self) -> int:
        """Positions it is made for, 0 where only the model knows.

        Qwen's model cards add YaRN to a config.json and leave its ``max_position_embeddings`` as it was.
        """
        scaling = self.scaling
        return int(scaling.factor * scaling.original_positions) if isinstance(scaling, YarnScaling) else 0

    def inverse_frequencies(self, head_dim: int) -> Frequencies:
        """Radians per position, float32 [head_dim / 2]; theta^(-2i/d), Su et al. 2021 (RoFormer), eq. 15.

        In float32 throughout, as the reference computes it; ``read_spec`` refuses what is not finite there.
        """
        with np.errstate(all="ignore"):
            exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
            plain = (1.0 / np.power(np.float32(self.theta), exponent)).astype(np.float32)
            return plain if self.scaling is None else self.scaling.stretched(plain, self.theta)

    def finite(self, head_dim: int) -> bool:
        """Whether every angle is a number."""
        return bool(np.isfinite(self.inverse_frequencies(head_dim)).all())


def single(fields: Fields) -> Rope:
    """The one rope of a Llama: ``rope_theta`` with ``rope_scaling``, or ``rope_parameters``.

    Where there are both, somebody has added ``rope_scaling`` to a newer file: it rules, as in transformers.
    The base is the first that is given of its own, the file's, and that in ``rope_parameters`` (which
    transformers would forget).
    """
    new, old = fields.table("rope_parameters"), fields.table("rope_scaling")
    for kind in ("full_attention", "sliding_attention"):
        if new is not None and kind in new.raw:
            raise new.refuse(kind, "is a rope of one kind of layer; this architecture has one for all")
    scaling = old or new
    order = (old, fields, new) if old else (new, fields)
    given = next((one for one in order if one and one.raw.get("rope_theta") is not None), fields)
    return Rope(_theta(given, "rope_theta", 10_000.0), _scaling(scaling, fields) if scaling else None)


def per_layer_type(fields: Fields) -> tuple[Rope, Rope]:
    """Gemma 3's two ropes: of full-attention layers, and of sliding ones. ``rope_scaling`` is of the first,
    over what ``rope_parameters`` say of it."""
    new = fields.table("rope_parameters") or Fields(fields.path, {})
    old = fields.table("rope_scaling")
    full, sliding = new.table("full_attention"), new.table("sliding_attention")
    ruling = Fields(fields.path, _untyped(full) | old.raw, "rope_scaling.") if old else full
    theta = _theta(fields, "rope_theta", 1_000_000.0)
    local = _theta(fields, "rope_local_base_freq", 10_000.0)
    return (
        Rope(
            _theta(ruling, "rope_theta", theta) if ruling else theta,
            _scaling(ruling, fields) if ruling else None,
        ),
        Rope(
            _theta(sliding, "rope_theta", local) if sliding else local,
            _scaling(sliding, fields) if sliding else None,
        ),
    )


def _untyped(fields: Fields | None) -> dict[str, Any]:
    """All but the kind of scaling, which is another's to say (by either name)."""
    return {key: value for key, value in (fields.raw if fields else {}).items() if key not in _KIND}


def _theta(fields: Fields, key: str, default: float) -> float:
    found = fields.number(key, default)
    if found <= 1:
        raise fields.refuse(key, f"must be above 1, not {found}")
    return found


def _scaling(fields: Fields, model: Fields) -> Scaling | None:
    """``rope_type`` (before transformers 4.43: ``type``) with its parameters; ``model``: what is around."""
    fields.must_be("partial_rotary_factor", 1.0, default=1.0)
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind == "default":
        return None
    readers: dict[str, Callable[[Fields, Fields], Scaling]] = {
        "linear": _linear,
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _factors,
    }
    if kind not in readers:
        known = ", ".join(f'"{name}"' for name in ("default", *readers))
        raise fields.refuse("rope_type", f"= {shown(kind)} is not supported; supported: {known}")
    return readers[kind](fields, model)


def _linear(fields: Fields, model: Fields) -> LinearScaling:
    return LinearScaling(fields.number("factor"))


def _llama3(fields: Fields, model: Fields) -> Llama3Scaling:
    found = Llama3Scaling(
        factor=fields.number("factor"),
        low_freq_factor=fields.number("low_freq_factor"),
        high_freq_factor=fields.number("high_freq_factor"),
        original_positions=fields.integer("original_max_position_embeddings"),
    )
    if found.high_freq_factor <= found.low_freq_factor:
        raise fields.refuse("high_freq_factor", "must be above low_freq_factor")
    return found


def _yarn(fields: Fields, model: Fields) -> YarnScaling:
    """DeepSeek's two magnitudes and a ramp that is not rounded are refused."""
    for key in ("mscale", "mscale_all_dim"):
        fields.must_be(key, None, default=None)
    fields.must_be("truncate", True, default=True)
    factor = fields.number("factor")
    if factor < 1:
        raise fields.refuse("factor", f"must be at least 1, not {factor}")
    found = YarnScaling(
        factor=factor,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        original_positions=_original(fields, model),
        magnitude=fields.number("attention_factor", 0.1 * math.log(factor) + 1.0),
    )
    if found.beta_fast <= found.beta_slow:
        raise fields.refuse("beta_fast", "must be above beta_slow")
    return found


def _factors(fields: Fields, model: Fields) -> FactorScaling:
    """LongRoPE whose two lists are one: with two, frequencies would change within a sequence."""
    factors = fields.raw.get("long_factor")
    if not isinstance(factors, list) or not factors or not all(_is_factor(one) for one in factors):
        raise fields.refuse("long_factor", "must list a number other than 0 for every pair of a head")
    if fields.raw.get("short_factor") != factors:
        raise fields.refuse("short_factor", "differs from long_factor, which is not supported")
    if fields.raw.get("attention_factor") is None:
        raise fields.refuse("attention_factor", "is missing")
    return FactorScaling(tuple(map(float, factors)), fields.number("attention_factor"))


def _is_factor(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 1e-30 < abs(value) < 1e30  # type: ignore[arg-type]


def _original(fields: Fields, model: Fields) -> int:
    """The trained context; as in transformers the model's own where the scaling does not say."""
    key = "original_max_position_embeddings"
    return (
        fields.integer(key) if fields.raw.get(key) is not None else model.integer("max_position_embeddings")
    )
