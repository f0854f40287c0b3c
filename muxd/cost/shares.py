"""How models divide a device: the arithmetic of shares, for the scheduler and for plans alike. Pure.

Nobody tunes shares. Equal small parts leave every batch room to start beside the others, and the scheduler
lends what nobody uses; a vector of shares that a plan had found better by means made models take turns.
"""

from collections.abc import Sequence


def equal_part(models: int, rungs: Sequence[int]) -> int:
    """The share of one of ``models`` models, with which as many as there are shares run beside each other:
    the largest rung that fits so often, or the smallest. ``rungs`` ascend."""
    return max((rung for rung in rungs if rung * models <= 100), default=rungs[0])


def most_beside(rungs: Sequence[int]) -> int:
    """The most a batch can have that leaves the smallest share to somebody else; all if nothing does."""
    return max((rung for rung in rungs if rung + rungs[0] <= 100), default=rungs[-1])


def prefill_part(models: int, rungs: Sequence[int]) -> int:
    """What a prefill has among ``models`` models: arithmetic needs multiprocessors, and the steps beside it
    need few of them. A model that is alone has everything."""
    return max(equal_part(models, rungs), most_beside(rungs))
