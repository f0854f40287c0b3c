"""A device nobody has a datasheet for, such as this CPU, from one model measured on it."""

from bisect import bisect_right
from math import log

import msgspec

from muxd.cost.analytic import decode_work, operations, prefill_work
from muxd.cost.peaks import Peak, Reach
from muxd.cost.profile import ModelProfile
from muxd.cost.shapes import ModelShape

_PROMPT = 512  # tokens


def learned(name: str, shape: ModelShape, measured: ModelProfile) -> tuple[Peak, Reach]:
    """For ``Roofline`` estimates of other models on the device of ``measured``, a profile of ``shape``.

    Bandwidth from the smallest decode step, arithmetic from the largest one and from the largest prefill
    batch in which attention matters little, their dependence on the share from its ends. Measure a large
    model: launches are booked as bandwidth, and they weigh most in a small one. Links are not learned.
    """
    prefill, decode = measured.prefill, measured.decode
    dtype = measured.shape.dtype
    used = shape.weight_bytes(1, dtype) * (shape.body_parameters + shape.head_parameters) / shape.parameters
    context = decode.contexts[0]
    kept = msgspec.structs.replace(shape, kv_dtype=measured.shape.kv_dtype)
    moved = used + kept.kv_bytes(1, dtype) * decode.rows[0] * (context + 1)
    at = max(0, bisect_right(prefill.rows, _PROMPT) - 1)
    prompt = prefill_work(1, prefill.rows[at], prefill.contexts[0])
    flops = operations(shape, prompt) / prefill.seconds[-1][at][0]
    crowded = operations(shape, decode_work(decode.rows[-1], context)) / decode.seconds[-1][-1][0]
    reach = Reach(
        decode_flops=min(1.0, crowded / flops),
        prefill_flops=1.0,
        bandwidth=1.0,
        link=1.0,
        flops_exponent=_exponent(prefill.shares, [plane[at][0] for plane in prefill.seconds]),
        bandwidth_exponent=_exponent(decode.shares, [plane[0][0] for plane in decode.seconds]),
        allreduce=0.0,
        decode_layer=0.0,
        prefill_layer=0.0,
    )
    bandwidth = moved / decode.seconds[-1][0][0]
    return Peak(name, flops, bandwidth, bandwidth), reach


def _exponent(shares: list[int], seconds: list[float]) -> float:
    """Of the power law through the smallest and the largest share; proportional where there is one share."""
    if len(shares) == 1:
        return 1.0
    return min(1.0, max(0.0, log(seconds[0] / seconds[-1]) / log(shares[-1] / shares[0])))
