"""What devices can do at most, and which part of it an engine's kernels reach.

``EAGER`` was fitted to the table of an A100 that MuxServe publishes (``published.py``): nine constants for
its four models, 1 to 8 GPUs, 30 to 100 % of the multiprocessors. For other devices the same parts are
assumed, which nobody has measured.
"""

from msgspec import Struct
from msgspec.structs import replace

from muxd.errors import ConfigError


class Peak(Struct, frozen=True):
    """Of one device."""

    name: str
    flops: float  # a second, dense 16-bit
    bandwidth: float  # of its memory, bytes a second
    link: float  # to the other devices of a group, bytes a second in one direction


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


# The datasheets of NVIDIA: SXM modules over NVLink, the L40S over PCIe 4.
PEAKS = {
    "a100": Peak("a100", 312e12, 2.04e12, 300e9),
    "h100": Peak("h100", 989e12, 3.35e12, 450e9),
    "h200": Peak("h200", 989e12, 4.8e12, 450e9),
    "l40s": Peak("l40s", 362e12, 0.864e12, 32e9),
}
_SPELLINGS = {"a100-80g": "a100", "a100-80gb": "a100", "h100-80g": "h100"}

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


def peak(name: str) -> Peak:
    """By name, in any case. Raises ConfigError that lists what is known."""
    key = name.lower()
    try:
        return PEAKS[_SPELLINGS.get(key, key)]
    except KeyError:
        raise ConfigError(
            f"--roofline {name!r}: known are {', '.join(PEAKS)}; measure others with `muxd profile`"
        ) from None
