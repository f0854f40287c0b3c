"""From what `muxctl plan` was asked to a plan: the search by each method, then the best few tried out."""

from functools import cached_property

from msgspec import structs

from muxd.cli.searching import Patience, say
from muxd.config import Config, DeviceConfig, ModelConfig
from muxd.cost.estimate import Costs
from muxd.errors import ConfigError
from muxd.fleet.pool_sizes import workers_budget
from muxd.placement.estimator import Estimator
from muxd.placement.memory import Budget
from muxd.placement.planner import Method, default_effort, finished, found, layout_of, temporal
from muxd.placement.problem import Layout, Plan, Problem
from muxd.placement.search import Enough
from muxd.sim.trial import POLICIES, Trials, beginning, traffic, window
from muxd.sim.workload import Workload


class _Gpu:
    """One that is planned for. ``parts``: as many as it has shares, if it can be divided."""

    def __init__(self, memory: int, rungs: list[int]):
        self.memory, self.rungs = memory, rungs
        self.parts = len(rungs) if len(rungs) > 1 else 0


class Setting:
    """What is planned, and by which costs. ``rungs``: the shares of each device; ``asked``: requests that
    were given, else they are drawn by the rates."""

    def __init__(self, problem: Problem, costs: Costs, rungs: list[int], asked: Workload | None = None):
        self.problem, self.costs, self.rungs, self.asked = problem, costs, rungs, asked

    @cached_property
    def budget(self) -> Budget:
        """The daemon's own."""
        models = [ModelConfig(model.name, model.name) for model in self.problem.models]
        devices = [DeviceConfig(f"cuda:{index}") for index in range(self.problem.gpus.count)]
        config = Config(model=models, device=devices)
        return workers_budget(config, _Gpu(self.problem.gpus.memory, self.rungs))

    @cached_property
    def appraiser(self) -> Estimator:
        return Estimator(self.problem, self.costs, self.budget, self.rungs)


def make(
    setting: Setting, methods: list[Method], limit: Patience
) -> tuple[dict[Method, list[Plan]], dict[Method, str]]:
    """The best few plans by each method, the best first, and why some have none. Raises ConfigError where no
    method could have one."""
    plans: dict[Method, list[Plan]] = {}
    failed: dict[Method, str] = {}
    appraiser, own = setting.appraiser, _Own(setting, limit)
    for method in methods:
        try:
            if method in ("ours", "temporal"):
                layouts = own.layouts
                if method == "temporal":
                    layouts = [temporal(appraiser, layouts[0])]
            else:
                with limit.search(f"Planning {method}", 0) as advance:
                    layouts = [layout_of(method, appraiser, None, advance)]
        except ConfigError as error:
            failed[method] = error.message
        except Enough:
            failed[method] = f"{method}: no plan in {limit.seconds:g} s; give it more --seconds"
        else:
            plans[method] = [finished(method, appraiser, layout) for layout in layouts]
    return plans, failed


class _Own:
    """Our own layouts, searched once: temporal runs on them, too."""

    def __init__(self, setting: Setting, limit: Patience):
        self._setting, self._limit = setting, limit

    @cached_property
    def layouts(self) -> list[Layout]:
        appraiser = self._setting.appraiser
        models = len(appraiser.problem.models)
        effort = default_effort(models)
        with self._limit.search("Planning ours", effort.total(models)) as advance:
            layouts = found(appraiser, effort, advance)
        plan = finished("ours", appraiser, layouts[0])
        say(f"Planning ours: {plan.served:.1f} of {plan.rate:.1f} requests/s")
        return layouts


def tried(setting: Setting, plans: list[Plan], limit: Patience, requests: int) -> Plan:
    """The plan that keeps most of ``requests`` (of each unit) on time when simulated, with what others do on
    its layout. Without simulations where Ctrl-C ends them, or nothing arrives in their time."""
    problem, best = setting.problem, plans[0]
    if limit.stopped or not requests:
        return best
    seconds = window(problem, best, requests)
    workload = beginning(setting.asked, seconds) if setting.asked else traffic(problem, seconds)
    if not workload.items:
        return best
    trials = Trials(problem, setting.costs, setting.rungs, setting.budget.usable * problem.gpus.memory)

    def run(plan: Plan, policy: str) -> Plan:
        label = f"Simulating {policy}, {len(workload.items)} requests"
        with limit.work(label, sum(1 for unit in plan.units if unit.members)) as advance:
            done = trials.run(plan, workload, policy, advance)
        return structs.replace(plan, trials=(*plan.trials, done))

    try:
        best = run(best, POLICIES[0])
        for plan in plans[1:]:
            if best.trials[0].on_time == 1.0:
                break
            best = max(best, run(plan, POLICIES[0]), key=lambda one: one.trials[0].on_time)
        for policy in POLICIES[1:]:
            best = run(best, policy)
    except Enough:
        pass
    return best
