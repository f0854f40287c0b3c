"""A day whose popular models change four times: replanning against an oracle that knows the rates.

    python benchmarks/drift.py --out OUT [--phase 600] [--seed 0]

Eight 14B models on four A100 (roofline). In each of five phases two other models are asked for most. The day
is condensed: a phase lasts ten minutes, which is harder than a day's, as reacting takes the same seconds.

fixed     the plan for the first phase's rates, all day
average   the plan for the day's mean rates, all day
replan    the first plan; a fading mean of arrivals measures rates; every 10 s muxd.placement.replan is asked
oracle    at each change the plan for the true rates; its moves cost the same seconds
free      the oracle, and moves take no time
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from msgspec import Struct, structs

from muxd.cost.analytic import Roofline
from muxd.cost.profile import Contention
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.engine.ewma import FadingSum
from muxd.placement.appraiser import canonical
from muxd.placement.estimator import Estimator
from muxd.placement.planner import Effort, layout_of
from muxd.placement.problem import Gpus, Layout, ModelLoad, Problem
from muxd.placement.replan import Policy, decide, propose, relabelled, with_rates
from muxd.sim.cluster import Cluster, Terms
from muxd.sim.generate import arrivals
from muxd.sim.lengths import lengths
from muxd.sim.moving import Itinerary, Stage, run_moving
from muxd.sim.records import Records
from muxd.sim.report import make_report
from muxd.sim.workload import Item, Workload

SIZE = "qwen2.5-14b"
POPULAR = [(0, 1), (2, 3), (4, 5), (6, 7), (1, 6)]  # of each phase
EFFORT = Effort(steps=300, tuned_steps=30, sets=0)
TERMS = Terms(contention=Contention(decode_by_decode=1.2))
SCALES = (2.0, 3.0, 4.0, 5.0, 8.0, 12.0)


class Day(Struct, frozen=True):
    """What changes and how fast. Rates are requests a second of one model."""

    phase: float = 600.0
    hot: float = 7.0
    cold: float = 0.4
    lengths: str = "lognormal:100,261"
    models: int = 8
    gpus: int = 4
    popular: tuple[tuple[int, ...], ...] = tuple(POPULAR)
    period: float = 10.0  # between two looks at the rates
    memory: float = 30.0  # of the fading mean
    policy: Policy = Policy(least_gain=0.05, horizon=300.0, cooldown=60.0, steps=200)

    @property
    def seconds(self) -> float:
        return self.phase * len(self.popular)

    def rates(self, phase: int) -> list[float]:
        return [self.hot if i in self.popular[phase] else self.cold for i in range(self.models)]

    def problem(self, rates: list[float]) -> Problem:
        mean = tuple(int(float(part)) for part in self.lengths.partition(":")[2].split(","))
        models = tuple(
            ModelLoad(f"m{i}", SIZE, CATALOGUE[SIZE], rate, mean[0], mean[1]) for i, rate in enumerate(rates)
        )
        return Problem(models, Gpus("A100-80G", 80 * 10**9, self.gpus))


def traffic(day: Day, seed: int) -> Workload:
    """Poisson at the rates of each phase."""
    drawn, items = lengths(day.lengths), []
    for phase in range(len(day.popular)):
        for index, rate in enumerate(day.rates(phase)):
            random = np.random.default_rng([seed, phase, index])
            times = arrivals(random, rate, day.phase, 1.0) + phase * day.phase
            prompt, output = drawn.draw(random, len(times))
            columns = zip(times.tolist(), prompt.tolist(), output.tolist(), strict=True)
            items += [Item(time, f"m{index}", ins, outs) for time, ins, outs in columns]
    items.sort(key=lambda item: item.time)
    return Workload(items, {"duration": day.seconds})


# ---- who plans ---------------------------------------------------------------------------------------


def planned(day: Day, rates: list[float], costs: Roofline) -> Layout:
    return canonical(layout_of("ours", Estimator(day.problem(rates), costs), EFFORT))


def oracle(day: Day, costs: Roofline) -> list[Stage]:
    stages: list[Stage] = []
    for phase in range(len(day.popular)):
        layout = planned(day, day.rates(phase), costs)
        if stages:
            layout = relabelled(day.problem(day.rates(phase)), stages[-1].layout, layout)
        stages.append(Stage(phase * day.phase, layout))
    return stages


def replanned(day: Day, workload: Workload, costs: Roofline) -> list[Stage]:
    """Knows the first phase's rates at the start, then only arrivals."""
    problem = day.problem(day.rates(0))
    stages = [Stage(0.0, planned(day, day.rates(0), costs))]
    sums = {model.name: FadingSum(day.memory) for model in problem.models}
    for model in problem.models:
        sums[model.name].add(model.rate * day.memory, 0.0)
    items, at, since = iter(workload.items), day.period, 0.0
    item = next(items, None)
    while at < day.seconds:
        while item is not None and item.time <= at:
            sums[item.model].add(1.0, item.time)
            item = next(items, None)
        if at - since >= day.policy.cooldown:
            rates = {name: total.at(at) / day.memory for name, total in sums.items()}
            appraiser = Estimator(with_rates(problem, rates), costs)
            present = stages[-1].layout
            made = decide(appraiser, present, propose(appraiser, present, day.policy), day.policy, at - since)
            if made.adopt:
                stages.append(Stage(at, made.layout))
                since = at
        at += day.period
    return stages


def systems(
    day: Day, workload: Workload, costs: Roofline
) -> dict[str, Callable[[], tuple[list[Stage], Policy]]]:
    free = structs.replace(day.policy, start=0.0, bandwidth=1e15)
    means = np.mean([day.rates(phase) for phase in range(len(day.popular))], 0).tolist()
    return {
        "fixed": lambda: ([Stage(0.0, planned(day, day.rates(0), costs))], day.policy),
        "average": lambda: ([Stage(0.0, planned(day, means, costs))], day.policy),
        "replan": lambda: (replanned(day, workload, costs), day.policy),
        "oracle": lambda: (oracle(day, costs), day.policy),
        "free": lambda: (oracle(day, costs), free),
    }


class Result(Struct, frozen=True):
    """``slo``: part of all requests within each of ``SCALES`` times their latency alone on one device."""

    plans: int
    moves: int
    slo: list[float]
    by_phase: list[float]  # at scale 8
    ttft99: float


def simulated(day: Day, workload: Workload, stages: list[Stage], policy: Policy, costs: Roofline) -> Result:
    problem = day.problem(day.rates(0))
    cluster = Cluster(problem.models, costs, "A100-80G")
    itinerary = Itinerary(Estimator(problem, costs), stages, policy)
    records = run_moving(cluster, itinerary, workload, TERMS)
    alone = CostTable(profile_of(costs, "A100-80G", {m.name: (m.cost, 1) for m in problem.models}))
    total = make_report(records, kind="simulated", policy="mux", cost=alone, scales=SCALES).total
    assert total.slo is not None
    assert total.ttft is not None
    return Result(
        len(stages), itinerary.moves, total.slo.latency, phases(day, records, alone), total.ttft.p99
    )


def phases(day: Day, records: Records, alone: CostTable) -> list[float]:
    """Attainment at scale 8 of the requests that came in each phase."""
    items = records.workload.items
    base = np.array([alone.alone(item.model, item.prompt_tokens, item.output_tokens) for item in items])
    kept = records.end - records.sent <= 8 * base
    phase = (records.sent // day.phase).astype(int)
    return [float(kept[phase == number].mean()) for number in range(len(day.popular))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", type=float, default=600.0, help="seconds")
    parser.add_argument("--hot", type=float, default=Day().hot, help="requests a second of a popular model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", nargs="+", default=["fixed", "average", "replan", "oracle", "free"])
    args = parser.parse_args()
    day, costs = Day(phase=args.phase, hot=args.hot), Roofline("A100-80G")
    workload = traffic(day, args.seed)
    scales = " | ".join(f"{scale:g}x %" for scale in SCALES)
    numbers = " | ".join(f"phase {i + 1}" for i in range(len(day.popular)))
    lines = [f"# Drift\n\n{len(workload.items)} requests in {day.seconds:g} s, seed {args.seed}, "
             f"hot {day.hot:g}/s, cold {day.cold:g}/s, lengths {day.lengths}.\n",
             f"| PLAN | plans | models moved | {scales} | TTFT p99 s | {numbers} (8x %) |",
             "|---" * (4 + len(SCALES) + len(day.popular)) + "|"]  # fmt: skip
    for name in args.systems:
        found = simulated(day, workload, *systems(day, workload, costs)[name](), costs)
        slo = " | ".join(f"{100 * value:.1f}" for value in found.slo)
        by_phase = " | ".join(f"{100 * value:.1f}" for value in found.by_phase)
        lines.append(f"| {name} | {found.plans} | {found.moves} | {slo} | {found.ttft99:.1f} | {by_phase} |")
        print(lines[-1], flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "drift.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
