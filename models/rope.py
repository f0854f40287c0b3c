"""Rotary position embedding as configured: base, scaling, and the inverse frequencies they give.

Reads the old layout of config.json (``rope_theta``, ``rope_scaling``, ``rope_local_base_freq``) and the one
of transformers 5 (``rope_parameters``). Pure numpy, so that a spec needs no torch.
"""

import math

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from muxd.models.config_file import Fields


class Llama3Scaling(Struct, frozen=True):
    """Frequency scaling of Llama 3.1: long wavelengths are stretched, short ones kept, linear between."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_positions: int


class Rope(Struct, frozen=True):
    """Base of the geometric series of frequencies, and its scaling."""

    theta: float
    scaling: Llama3Scaling | None = None

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """Radians per position, float32 [head_dim / 2]; theta^(-2i/d), Su et al. 2021 (RoFormer), eq. 15.

        In float32 throughout, as the reference computes it.
        """
        exponent = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
        plain = (1.0 / np.power(np.float32(self.theta), exponent)).astype(np.float32)
        return plain if self.scaling is None else _stretch(plain, self.scaling)


def _stretch(plain: NDArray[np.float32], scaling: Llama3Scaling) -> NDArray[np.float32]:
    """Llama 3.1 report, as in the reference ``apply_scaling``: by wavelength against the trained context."""
    wavelength = 2 * math.pi / plain
    low = scaling.original_positions / scaling.low_freq_factor
    high = scaling.original_positions / scaling.high_freq_factor
    span = scaling.high_freq_factor - scaling.low_freq_factor
    smooth = (scaling.original_positions / wavelength - scaling.low_freq_factor) / span
    between = (1 - smooth) * plain / scaling.factor + smooth * plain
    stretched = np.where(
        wavelength > low, plain / scaling.factor, np.where(wavelength < high, plain, between)
    )
    return stretched.astype(np.float32)


def single(fields: Fields) -> Rope:
    """The one rope of a Llama: ``rope_parameters``, else ``rope_theta`` with ``rope_scaling``."""
    new = fields.table("rope_parameters")
    if new is not None:
        return Rope(new.number("rope_theta", 10_000.0), _scaling(new))
    old = fields.table("rope_scaling")
    return Rope(fields.number("rope_theta", 10_000.0), _scaling(old) if old else None)


def per_layer_type(fields: Fields) -> tuple[Rope, Rope]:
    """Gemma 3's two ropes: of full-attention layers, and of sliding ones."""
    new = fields.table("rope_parameters") or Fields(fields.path, {})
    old = fields.table("rope_scaling")
    full, sliding = new.table("full_attention"), new.table("sliding_attention")
    scaling = _scaling(full) if full else _scaling(old) if old else None
    theta = fields.number("rope_theta", 1_000_000.0)
    local = fields.number("rope_local_base_freq", 10_000.0)
    return (
        Rope(full.number("rope_theta", theta) if full else theta, scaling),
        Rope(
            sliding.number("rope_theta", local) if sliding else local, _scaling(sliding) if sliding else None
        ),
    )


def _scaling(fields: Fields) -> Llama3Scaling | None:
    """``rope_type`` (before transformers 4.43: ``type``) with its parameters."""
    kind = fields.text("rope_type", fields.text("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise fields.refuse("rope_type", f'= "{kind}" is not supported; supported: "default", "llama3"')
    found = Llama3Scaling(
        factor=fields.number("factor"),
        low_freq_factor=fields.number("low_freq_factor"),
        high_freq_factor=fields.number("high_freq_factor"),
        original_positions=fields.integer("original_max_position_embeddings"),
    )
    if found.high_freq_factor <= found.low_freq_factor:
        raise fields.refuse("high_freq_factor", "must be above low_freq_factor")
    return found
