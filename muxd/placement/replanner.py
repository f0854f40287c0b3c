"""Replanning while requests come: measures rates, looks now and then, keeps the layout that rules. Pure."""

from msgspec import Struct

from muxd.cost.estimate import Costs
from muxd.placement.estimator import Estimator
from muxd.placement.problem import Layout, Problem
from muxd.placement.rates import Rates
from muxd.placement.replan import Decision, Policy, decide, propose, retuned, with_rates


class Watch(Struct, frozen=True):
    """How rates are watched, in seconds. ``surprise``: see ``Rates``.

    ``headroom``: plans are made for so many times the rates, as a mesh that can just serve the mean never
    gets rid of a queue.
    """

    period: float = 5.0  # between two looks
    memory: float = 60.0
    surprise: float = 4.0
    headroom: float = 1.2


class Replanner:
    """``problem`` has the rates believed at the start, ``present`` the layout made for them.

    ``arrived`` with every request, ``look`` every ``watch.period``. Raises KeyError for a model that is not
    in the problem.
    """

    def __init__(self, problem: Problem, costs: Costs, present: Layout, policy: Policy, watch: Watch):
        self.present = present
        self.rates = {model.name: model.rate for model in problem.models}  # as last measured
        self._problem, self._costs, self._policy = problem, costs, policy
        self._measured = Rates(self.rates, watch.memory, watch.surprise)
        self._headroom = watch.headroom
        self._moved = float("-inf")

    def arrived(self, model: str) -> None:
        self._measured.arrived(model)

    def look(self, now: float) -> Decision:
        """What rules from now on. While models may not move yet, shares still may."""
        self.rates = self._measured.look(now)
        wanted = {name: rate * self._headroom for name, rate in self.rates.items()}
        appraiser = Estimator(with_rates(self._problem, wanted), self._costs)
        proposed = propose(appraiser, self.present, self._policy)
        made = decide(appraiser, self.present, proposed, self._policy, now - self._moved)
        if not made.adopt:
            shares = retuned(appraiser, self.present)
            made = decide(appraiser, self.present, shares, self._policy, 0.0)
        if made.adopt:
            self.present = made.layout
            if made.moves:
                self._moved = now
        return made
