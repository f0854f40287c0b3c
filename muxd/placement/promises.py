"""What served requests are worth: goodput. Pure.

    worth = weight * served * (LATE + (1 - LATE) * kept(late) * served / rate) * (1 + SPEED * alone / seconds)
    kept(late) = 1 up to late = 1, beyond it late ** -2

``served`` is the rate, or the throughput where that is less. ``late`` is the predicted mean over what the
mean may be: ``HEADROOM`` of the target, for a plan knows means, queues have tails, and the tail is what
misses a target: where the mean is just on time about half of the requests are not. A model with targets
(``ttft_slo``, ``tpot_slo``) has those, the later one counts; without any, the whole answer should take no
more than ``TIMES`` as long as alone: who gave no number means "about as fast as it is by itself".

Nor is anybody on time in a burst where the mean alone fills the pool: what it holds, over ``HEADROOM`` of
the pool, counts as lateness of the unit's models, too. And where less is served than asked for, a queue
grows, and those that are served are late as well: ``served / rate`` once more.

Beyond that a request is worth less and less, so that a search sees which way is better where not everybody
can be on time; the square makes one model far too late worse than two a little late. But an answer that is
late is an answer: without ``LATE`` a model in deep overload would be worth nothing wherever it is, and would
be left without the device that could serve twice as much of it.

The part for speed is small, so that nobody is served less for it, and decides between plans in which all are
on time: what is faster by the mean has room for more traffic than was foreseen.
"""

from muxd.placement.problem import ModelLoad

TIMES = 5.0  # the latency alone
HEADROOM = 0.6  # part of a target that a mean may take: three times the latency alone
SPEED = 0.01
LATE = 0.5  # of an answer in time


def lateness(model: ModelLoad, first: float, token: float, seconds: float, alone: float) -> float:
    """The predicted means over what they may be: ``first`` token, each further ``token``, the whole answer's
    ``seconds``; ``alone``: what that takes by itself."""
    if not (model.ttft_slo or model.tpot_slo):
        return seconds / (HEADROOM * TIMES * alone)
    ttft = first / (HEADROOM * model.ttft_slo) if model.ttft_slo else 0.0
    return max(ttft, token / (HEADROOM * model.tpot_slo) if model.tpot_slo else 0.0)


def worth(model: ModelLoad, throughput: float, late: float, speed: float) -> float:
    """``speed``: seconds alone over those predicted."""
    served = min(model.rate, throughput)
    kept = max(1.0, late) ** -2 * served / model.rate
    return model.weight * served * (LATE + (1.0 - LATE) * kept) * (1.0 + SPEED * min(1.0, speed))


def most(models: tuple[ModelLoad, ...]) -> float:
    """Everybody served, on time, and as fast as alone."""
    return sum(model.weight * model.rate for model in models) * (1.0 + SPEED)
