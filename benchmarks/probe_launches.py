"""What the device itself gives, and what one small kernel of a recorded step costs, however little it does.

    python benchmarks/probe_launches.py --out F.jsonl [--dry]

A small model's step is hundreds of small kernels in a row: the time of one in a chain, plain and with
programmatic dependent launch (the next one's start overlaps with the end of the one before), says what fewer
kernels would save. Has not run on a GPU.
"""

from collections.abc import Callable
from functools import partial

from probe import Probe, main
from roofline_device import measure_peaks
from torch import Tensor

_CHAIN = 100
_HIDDEN = 896  # of the smallest model that is looked at


def peaks(probe: Probe) -> None:
    found = measure_peaks(probe.plan)
    if probe.dry:
        return probe.say(ran=True)
    rates = (found.bytes_per_second, found.flops_per_second)
    probe.say(tb_s=round(rates[0] / 1e12, 3), tflop_s=round(rates[1] / 1e12, 1))


def norms(probe: Probe) -> None:
    """A chain of our own norms, each waiting for the one before."""
    from muxd.kernels import rms_norm_kernel

    x, weight = probe.random(1, _HIDDEN), probe.random(_HIDDEN)

    def step(i: int) -> None:
        y = x
        for _ in range(_length(probe)):
            y = rms_norm_kernel.rms_norm(y, weight, 1e-6)

    probe.time({"kernels": _length(probe)}, step, 1)


def dependent(probe: Probe) -> None:
    """The same small kernel with and without dependent launch, and whether its result is the same."""
    from unmeasured_variants.dependent_launch import chain

    start, weight, results = probe.random(_HIDDEN), probe.random(_HIDDEN), []
    for early in (False,) if probe.dry else (False, True):
        x, run = start.clone(), partial(chain, weight=weight, count=_length(probe), early=early)
        run(x)
        results.append(x.clone())
        told = {"kernels": _length(probe), "early": early, "same": bool((results[-1] == results[0]).all())}
        probe.time(told, partial(_again, run, x), 1)


def _again(run: Callable[[Tensor], None], x: Tensor, i: int) -> None:
    run(x)


def _length(probe: Probe) -> int:
    return 3 if probe.dry else _CHAIN


if __name__ == "__main__":
    main({"peaks": peaks, "norms": norms, "dependent": dependent}, __doc__)
