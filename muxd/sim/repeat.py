"""Decode steps that decide nothing, gone through on the device alone.

The device computes every step's time, the very floats of step by step; only the scheduler is not asked.
"""

from muxd.clock import VirtualClock
from muxd.engine.repeats import Foreseen
from muxd.sim.device import VirtualDevice

Steps = list[tuple[str, float]]


def repeat(device: VirtualDevice, clock: VirtualClock, foreseen: Foreseen, until: float) -> Steps:
    """Whose steps were done, and when the daemon heard of it, in order: all before ``until`` and before the
    first that was not foreseen."""
    left, number, until = dict(foreseen.steps), foreseen.begun, min(until, foreseen.until)
    steps: Steps = []
    while True:
        due, batch, heard = device.next()
        if batch is None or due >= until or (heard and (batch.task.prefill or not left.get(batch.model))):
            return steps
        now = clock.now()
        if due > now:
            clock.advance(due - now)
            now = clock.now()
        device.advance(batch, heard, now)
        if heard:
            left[batch.model] -= 1
            number += 1
            device.again(batch, number, now, ahead=foreseen.ahead)
            steps.append((batch.model, now))
