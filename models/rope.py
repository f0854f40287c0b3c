"""Rotary position embedding as configured: base, scaling, and the inverse frequencies they give.

Reads the old layout of config.json (``rope_theta``, ``rope_scaling``, ``rope_local_base_freq``), the one of
transformers 5 (``rope_parameters``), and files that have both. Pure numpy, so that a spec needs no torch.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from msgspec import Struct, structs
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
    rounded: bool = True  # the ends of the line between, to whole pairs

    def stretched(self, plain: Frequencies, theta: float) -> Frequencies:
        count = len(plain)

        def pair(turns: float) -> float:
            """The index of the pair, not rounded, that turns so often."""
            return count * math.log(self.original_positions / (turns * 2 * math.pi)) / math.log(theta)

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.rounded:
            low, high = math.floor(low), math.ceil(high)
        first, last = max(low, 0), min(high, 2 * count - 1)
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


class LongScaling(Struct, frozen=True):
    """LongRoPE with factors for sequences within the trained context, and for longer ones.

    A sequence's frequencies must not change while it grows, nor with who shares its prefix: ``Rope.within``
    takes one of the two for all sequences of a model, by the longest that it serves.
    """

    short: tuple[float, ...]
    long: tuple[float, ...]
    original_positions: int
    magnitude: float

    def stretched(self, plain: Frequencies, theta: float) -> Frequencies:
        return FactorScaling(self.long, self.magnitude).stretched(plain, theta)


class ProportionalScaling(Struct, frozen=True):
    """Gemma 4's: the first ``part`` of a head's pairs turn, as they would if all did, ``factor`` times as
    slowly; the others do not."""

    part: float
    factor: float = 1.0

    def stretched(self, plain: Frequencies, theta: float) -> Frequencies:
        turning = int(self.part * 2 * len(plain) // 2)
        still = np.zeros(len(plain) - turning, dtype=np.float32)
        return np.concatenate((plain[:turning] / np.float32(self.factor), still))


Scaling = LinearScaling | Llama3Scaling | YarnScaling | FactorScaling | LongScaling | ProportionalScaling


class Rope(Struct, frozen=True):
    """Base of the geometric series of frequencies, and its scaling."""

    theta: float
    scaling: Scaling | None = None
    turned: int | None = None  # dimensions of a head, the first ones of a stored one; None: all

    @property
    def magnitude(self) -> float:
        """What cosines and sines of turned pairs are multiplied by."""
        scaling = self.scaling
        return scaling.magnitude if isinstance(scaling, YarnScaling | FactorScaling | LongScaling) else 1.0

    def magnitudes(self, head_dim: int) -> Frequencies:
        """Of each pair, float32 [head_dim / 2]: what is not turned is not stretched either."""
        found = np.ones(head_dim // 2, dtype=np.float32)
        found[: self._turned(head_dim) // 2] = self.magnitude
        return found

    def within(self, context: int) -> "Rope":
        """The same for sequences of at most ``context`` tokens."""
        scaling = self.scaling
        if not isinstance(scaling, LongScaling):
            return self
        factors = scaling.short if context <= scaling.original_positions else scaling.long
        return structs.replace(self, scaling=FactorScaling(factors, scaling.magnitude))

    @property
    def positions(self) -> int:
        """Positions it is made for, 0 where only the model knows.

        Qwen's model cards add YaRN to a config.json and leave its ``max_position_embeddings`` as it was.
        """
        scaling = self.scaling
        return int(scaling.factor * scaling.original_positions) if isinstance(scaling, YarnScaling) else 0

    def inverse_frequencies(self, head_dim: int) -> Frequencies:
        """Radians per position, float32 [head_dim / 2]; theta^(-2i/d), Su et al. 2021 (RoFormer), eq. 15,
        where d is what turns. Pairs that do not turn come last, with frequency 0.

        In float32 throughout, as the reference computes it; ``read_spec`` refuses what is not finite there.
        """
        turned = self._turned(head_dim)
        with np.errstate(all="ignore"):
            exponent = np.arange(0, turned, 2, dtype=np.float32) / np.float32(turned)
            plain = (1.0 / np.power(np.float32(self.theta), exponent)).astype(np.float32)
            found = plain if self.scaling is None else self.scaling.stretched(plain, self.theta)
        return np.pad(found, (0, (head_dim - turned) // 2))

    def finite(self, head_dim: int) -> bool:
        """Whether every angle is a number."""
        return bool(np.isfinite(self.inverse_frequencies(head_dim)).all())

    def _turned(self, head_dim: int) -> int:
        return head_dim if self.turned is None else self.turned


STILL = Rope(10_000.0, turned=0)  # turns nothing: every angle is 0


def single(fields: Fields, *, theta: float = 10_000.0) -> Rope:
    """The one rope of a Llama: ``rope_theta`` with ``rope_scaling``, or ``rope_parameters``.

    Where there are both, somebody has added ``rope_scaling`` to a newer file: it rules, as in transformers.
    The base is the first that is given of its own, the file's, and that in ``rope_parameters`` (which
    transformers would forget). All of a head is turned.
    """
    fields.must_be("partial_rotary_factor", 1.0, default=1.0)
    scaling, given = _single(fields)
    if scaling:
        scaling.must_be("partial_rotary_factor", 1.0, default=1.0)
    return Rope(_theta(given, "rope_theta", theta), _scaling(scaling, fields) if scaling else None)


def partial(fields: Fields, head_dim: int, part: float) -> Rope:
    """The same where the ``partial_rotary_factor`` of a head is turned, by default ``part``."""
    scaling, given = _single(fields)
    key = "partial_rotary_factor"
    told = scaling if scaling and scaling.raw.get(key) is not None else fields
    turned = int(head_dim * told.number(key, part))
    if turned % 2 or not 0 < turned <= head_dim:
        raise told.refuse(key, f"turns {turned} of {head_dim} dimensions; it must be an even number of them")
    return Rope(_theta(given, "rope_theta", 10_000.0), _scaling(scaling, fields) if scaling else None, turned)


def _single(fields: Fields) -> tuple[Fields | None, Fields]:
    """What says how the one rope is scaled, and what says its base."""
    new, old = fields.table("rope_parameters"), fields.table("rope_scaling")
    for kind in ("full_attention", "sliding_attention"):
        if new is not None and kind in new.raw:
            raise new.refuse(kind, "is a rope of one kind of layer; this architecture has one for all")
    scaling = old or new
    order = (old, fields, new) if old else (new, fields)
    given = next((one for one in order if one and one.raw.get("rope_theta") is not None), fields)
    return scaling, given


def per_layer_type(fields: Fields, *, theta: float, local: float | None = None) -> tuple[Rope, Rope]:
    """Two ropes: of full-attention layers, and of sliding ones. ``rope_scaling`` is of the first, over what
    ``rope_parameters`` say of it. By default the bases are ``theta``, and ``local`` by
    ``rope_local_base_freq``; without ``local`` the same."""
    fields.must_be("partial_rotary_factor", 1.0, default=1.0)
    new = fields.table("rope_parameters") or Fields(fields.path, {})
    old = fields.table("rope_scaling")
    full, sliding = new.table("full_attention"), new.table("sliding_attention")
    ruling = Fields(fields.path, _untyped(full) | old.raw, "rope_scaling.") if old else full
    theta = _theta(fields, "rope_theta", theta)
    local = theta if local is None else _theta(fields, "rope_local_base_freq", local)
    for one in (ruling, sliding):
        if one and _kind(one) != "proportional":
            one.must_be("partial_rotary_factor", 1.0, default=1.0)
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


def _kind(fields: Fields) -> str:
    """``rope_type``, before transformers 4.43 ``type``."""
    return fields.text("rope_type", fields.text("type", "default"))


def _scaling(fields: Fields, model: Fields) -> Scaling | None:
    """What kind it is, with its parameters; ``model``: what is around."""
    kind = _kind(fields)
    if kind == "default":
        return None
    readers: dict[str, Callable[[Fields, Fields], Scaling]] = {
        "linear": _linear,
        "llama3": _llama3,
        "yarn": _yarn,
        "longrope": _longrope,
        "proportional": _proportional,
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
    """DeepSeek's two magnitudes are refused."""
    for key in ("mscale", "mscale_all_dim"):
        fields.must_be(key, None, default=None)
    factor = fields.number("factor")
    if factor < 1:
        raise fields.refuse("factor", f"must be at least 1, not {factor}")
    found = YarnScaling(
        factor=factor,
        beta_fast=fields.number("beta_fast", 32.0),
        beta_slow=fields.number("beta_slow", 1.0),
        original_positions=_original(fields, model),
        magnitude=fields.number("attention_factor", 0.1 * math.log(factor) + 1.0),
        rounded=fields.flag("truncate", True),
    )
    if found.beta_fast <= found.beta_slow:
        raise fields.refuse("beta_fast", "must be above beta_slow")
    return found


def _longrope(fields: Fields, model: Fields) -> FactorScaling | LongScaling:
    """Two lists of factors that may be one; the magnitude as transformers has it where the file does not say.

    Phi-3's paper: sqrt(1 + log(factor) / log(trained context)).
    """
    short, long = _factors(fields, "short_factor"), _factors(fields, "long_factor")
    magnitude, original = fields.raw.get("attention_factor"), _original(fields, model)
    if magnitude is not None:
        magnitude = fields.number("attention_factor")
    else:
        factor = fields.number("factor", model.integer("max_position_embeddings") / original)
        magnitude = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(max(original, 2)))
    return FactorScaling(long, magnitude) if short == long else LongScaling(short, long, original, magnitude)


def _proportional(fields: Fields, model: Fields) -> ProportionalScaling:
    key = "partial_rotary_factor"
    if (part := fields.number(key, 1.0)) > 1:
        raise fields.refuse(key, f"must be at most 1, not {part}")
    return ProportionalScaling(part, fields.number("factor", 1.0))


def _factors(fields: Fields, key: str) -> tuple[float, ...]:
    factors = fields.raw.get(key)
    if not isinstance(factors, list) or not factors or not all(_is_factor(one) for one in factors):
        raise fields.refuse(key, "must list a number other than 0 for every pair of a head that turns")
    return tuple(map(float, factors))


def _is_factor(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 1e-30 < abs(value) < 1e30  # type: ignore[arg-type]


def _original(fields: Fields, model: Fields) -> int:
    """The trained context; as in transformers the model's own where the scaling does not say."""
    key = "original_max_position_embeddings"
    return (
        fields.integer(key) if fields.raw.get(key) is not None else model.integer("max_position_embeddings")
    )
