"""What devices can do at most, and which part of it an engine's kernels reach.

``EAGER`` was fitted to the table of an A100 that MuxServe publishes (``published.py``): nine constants for
its four models, 1 to 8 GPUs, 30 to 100 % of the multiprocessors. For other devices the same parts are
assumed, which nobody has measured.
"""

import json
import re
import tomllib
from math import inf
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from muxd.errors import ConfigError


class Peak(Struct, frozen=True):
    """Of one device."""

    name: str
    flops: float  # a second, dense 16-bit
    bandwidth: float  # of its memory, bytes a second
    link: float  # to the other devices of a group, bytes a second in one direction
    memory: float = 0.0  # bytes; 0: not said


class Reach(Struct, frozen=True):
    """The parts of the peaks that kernels reach at 100 % share, how they shrink with the share, and what
    the host needs at least.

    ``together``: of the bandwidth, what all batches beside each other reach at most. ``*_exponent``: what is
    reached at share s is s ** exponent of that at 1: arithmetic needs multiprocessors, a few of them can
    already load much of the bandwidth.
    """

    decode_flops: float
    prefill_flops: float
    bandwidth: float
    link: float
    together: float
    flops_exponent: float
    bandwidth_exponent: float
    allreduce: float  # seconds each takes beside moving its bytes; two a layer
    decode_layer: float  # seconds the host needs to launch one layer, hidden behind the device's work
    prefill_layer: float
    batch: float = 0.0  # seconds added to every batch


# NVIDIA's datasheets, each by its name there, and the whitepapers of the GeForce cards. Operations are those
# of dense 16-bit matrices summed in 32 bits: half of what is printed "with sparsity", and of GeForce cards
# half of that again. Links: NVLink, else the PCIe bus, of which one direction counts. Bridges that join cards
# in pairs (H100 PCIe, H100 NVL) do not reach a third device, so that those count as PCIe 5.
PEAKS = {
    "a10": Peak("a10", 125e12, 0.6e12, 32e9, 24e9),
    "a100": Peak("a100", 312e12, 2.04e12, 300e9, 80e9),  # SXM, 80 GB
    "l4": Peak("l4", 121e12, 0.3e12, 32e9, 24e9),
    "l40s": Peak("l40s", 362e12, 0.864e12, 32e9, 48e9),
    "h20": Peak("h20", 148e12, 4.0e12, 450e9, 96e9),
    "h100": Peak("h100", 989e12, 3.35e12, 450e9, 80e9),  # SXM
    "h100pcie": Peak("h100pcie", 756e12, 2.0e12, 64e9, 80e9),
    "h100nvl": Peak("h100nvl", 835e12, 3.9e12, 64e9, 94e9),
    "h200": Peak("h200", 989e12, 4.8e12, 450e9, 141e9),  # SXM
    "b200": Peak("b200", 2250e12, 8.0e12, 900e9, 180e9),  # one of eight of a DGX
    "rtx4090": Peak("rtx4090", 165e12, 1.008e12, 32e9, 24e9),
    "rtx5090": Peak("rtx5090", 209e12, 1.792e12, 64e9, 32e9),
    "rtx6000ada": Peak("rtx6000ada", 364e12, 0.96e12, 32e9, 48e9),
}

# Together they reach what plain copying does, 0.92 of the datasheet: an assumption, which `muxd doctor --gpu`
# measures on a GPU.
EAGER = Reach(
    decode_flops=0.41,
    prefill_flops=0.615,
    bandwidth=0.68,
    link=0.33,
    together=0.92,
    flops_exponent=0.87,
    bandwidth_exponent=0.28,
    allreduce=78e-6,
    decode_layer=395e-6,
    prefill_layer=615e-6,
)
# The same kernels in CUDA graphs, so that a batch is launched at once. The 1.5 ms are an assumption.
CAPTURED = replace(EAGER, decode_layer=0.0, prefill_layer=0.0, batch=1.5e-3)


def peak(name: str, flag: str = "--roofline", others: str = "measure others with `muxd profile`") -> Peak:
    """By name, however people and drivers write it: "H100", "NVIDIA H100 PCIe", "rtx-4090", "A100-80G".

    Raises ConfigError that names ``flag``, lists what is known, and says what to do about ``others``.
    """
    found = recognised(name)
    if found is None:
        raise ConfigError(f"{flag} {name!r}: known are {', '.join(PEAKS)}; {others}")
    return found


def recognised(name: str) -> Peak | None:
    """The device whose name consists of words of ``name`` that follow each other; of several the longest."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    parts = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return PEAKS.get(max(parts & set(PEAKS), key=len, default=""))


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """A device file: TOML, or JSON with the same keys."""

    name: str
    flops: float
    bandwidth: float
    link: float
    memory: float


def read(path: Path) -> Peak:
    """A device that is not known here. Raises ConfigError naming file and key."""
    try:
        text = path.read_text()
        found = msgspec.convert(json.loads(text) if path.suffix == ".json" else tomllib.loads(text), _File)
    except OSError as error:
        raise ConfigError(f"--device: cannot read {path}: {error.strerror}") from None
    except (ValueError, msgspec.ValidationError) as error:  # JSON, TOML and UTF-8 say theirs as ValueError
        raise ConfigError(f"--device {path}: {error}") from None
    for key in ("flops", "bandwidth", "link", "memory"):
        if not 0 < getattr(found, key) < inf:
            raise ConfigError(f"--device {path}: {key} must be above 0 and finite")
    return Peak(found.name, found.flops, found.bandwidth, found.link, found.memory)
