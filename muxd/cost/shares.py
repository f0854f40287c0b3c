"""How models divide a device: the arithmetic of shares, for the scheduler and for plans alike. Pure.

Nobody tunes shares. Equal small parts leave every batch room to start beside the others, and the scheduler
lends what nobody uses; a vector of shares that a plan had found better by means made models take turns.
"""

from collections.abc import Sequence


def equal_part(models: int, rungs: Sequence[int]) -> int:
    """The share of one of ``models`` models, with which as many as there are shares run beside each other:
    the largest rung that fits so often, or the smallest. ``rungs`` ascend."""
    return max((rung for rung in rungs if rung * models <= 100), default=rungs[0])


def most_beside(share: int, rungs: Sequence[int]) -> int:
    """The most a batch can have beside one with ``share``; all if nothing fits beside it."""
    return max((rung for rung in rungs if rung + share <= 100), default=rungs[-1])


def prefill_part(models: int, rungs: Sequence[int]) -> int:
    """What a prefill has among ``models`` models: arithmetic needs multiprocessors, and the steps beside it
    no more than a model's part. A model that is alone has everything."""
    part = equal_part(models, rungs)
    return max(part, most_beside(part, rungs))
