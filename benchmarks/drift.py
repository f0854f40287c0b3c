"""A day whose popular models change four times: replanning against an oracle that knows the rates.

    python benchmarks/drift.py --out OUT [--phase 600] [--seed 0] [--popular "0,1 2,4 3,5 1,7 0,6"]

Eight 14B models on four A100 (roofline), each a host of its own as a daemon has them, so that no device has
room for a third. In each of five phases two other models are asked for most, and by default each later pair
shares a device in the first plan. The day is condensed: a phase lasts ten minutes, which is harder than a
day's, as reacting takes the same seconds. At 7/s and more no device serves a popular model on time, and moves
gain nothing.

fixed     the plan for the first phase's rates, all day
average   the plan for the day's mean rates, all day
slow      replan with looks every 10 s at a fading mean of 30 s, and no test for a change of the rates
replan    the first plan; rates are measured and muxd.placement.replanner looks every 5 s
oracle    at each change the same search is told the true rates; its moves cost the same seconds
free      the oracle's plans, and moves take neither time nor memory
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from msgspec import Struct, structs

from muxd.cost.analytic import Roofline
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE
from muxd.cost.table import CostTable
from muxd.placement.appraiser import canonical
from muxd.placement.estimator import Estimator
from muxd.placement.planner import Effort, layout_of
from muxd.placement.problem import Gpus, Layout, ModelLoad, Problem
from muxd.placement.rates import Rates
from muxd.placement.replan import Policy, propose, with_rates
from muxd.placement.replanner import Replanner, View, Watch
from muxd.sim.cluster import Cluster, Terms
from muxd.sim.generate import arrivals
from muxd.sim.itinerary import Itinerary, Stage
from muxd.sim.lengths import lengths
from muxd.sim.moving import Move, run_moving
from muxd.sim.records import Records
from muxd.sim.report import make_report
from muxd.sim.workload import Item, Workload

SIZE = "qwen2.5-14b"
POPULAR = ((0, 1), (2, 4), (3, 5), (1, 7), (0, 6))  # of each phase
EFFORT = Effort(steps=300, sets=0)
TERMS = Terms()
SCALES = (2.0, 3.0, 4.0, 5.0, 8.0, 12.0)


class Day(Struct, frozen=True):
    """What changes and how fast. Rates are requests a second of one model."""

    phase: float = 600.0
    hot: float = 6.0
    cold: float = 0.4
    lengths: str = "lognormal:100,261"
    models: int = 8
    gpus: int = 4
    memory: int = 80 * 10**9  # bytes of each
    popular: tuple[tuple[int, ...], ...] = POPULAR
    watch: Watch = Watch()
    policy: Policy = Policy(steps=200)

    @property
    def seconds(self) -> float:
        return self.phase * len(self.popular)

    def rates(self, phase: int) -> list[float]:
        return [self.hot if i in self.popular[phase] else self.cold for i in range(self.models)]

    def wanted(self, rates: list[float]) -> Problem:
        """What plans are made for, the oracle's too."""
        return self.problem([rate * self.watch.headroom for rate in rates])

    def problem(self, rates: list[float]) -> Problem:
        mean = tuple(int(float(part)) for part in self.lengths.partition(":")[2].split(","))
        models = tuple(
            ModelLoad(f"m{i}", SIZE, CATALOGUE[SIZE], rate, mean[0], mean[1]) for i, rate in enumerate(rates)
        )
        return Problem(models, Gpus("A100-80G", self.memory, 1, self.gpus))


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
    return canonical(layout_of("ours", Estimator(day.wanted(rates), costs), EFFORT))


def oracle(day: Day, costs: Roofline) -> list[Stage]:
    """The same search, told the truth at the moment of each change."""
    stages = [Stage(0.0, planned(day, day.rates(0), costs))]
    for phase in range(1, len(day.popular)):
        appraiser = Estimator(day.wanted(day.rates(phase)), costs)
        layout = propose(appraiser, stages[-1].layout, day.policy)
        rates = {model.name: model.rate for model in appraiser.problem.models}
        stages.append(Stage(phase * day.phase, layout, rates))
    return stages


def replanned(day: Day, workload: Workload, costs: Roofline) -> list[Stage]:
    """Knows the first phase's rates at the start, then only arrivals."""
    problem, watch = day.problem(day.rates(0)), day.watch
    measured = Rates({model.name: model.rate for model in problem.models}, watch.memory, watch.surprise)
    planner, stages = Replanner(day.policy, watch.headroom), [Stage(0.0, planned(day, day.rates(0), costs))]
    items, at = iter(workload.items), watch.period

    def view(wanted: Mapping[str, float]) -> View:
        return View(Estimator(with_rates(problem, wanted), costs), stages[-1].layout)

    item = next(items, None)
    while at < day.seconds:
        while item is not None and item.time <= at:
            measured.arrived(item.model)
            item = next(items, None)
        rates = measured.look(at)
        if (made := planner.look(rates, view, at)).adopt:
            stages.append(Stage(at, made.layout, rates))
        if made.moves:
            planner.moved(at)
        at += watch.period
    return stages


SLOW = Watch(period=10.0, memory=30.0, surprise=float("inf"))
SYSTEMS = ("fixed", "average", "slow", "replan", "oracle", "free")


def stages_of(system: str, day: Day, workload: Workload, costs: Roofline) -> list[Stage]:
    match system:
        case "fixed":
            return [Stage(0.0, planned(day, day.rates(0), costs))]
        case "average":
            means = np.mean([day.rates(phase) for phase in range(len(day.popular))], 0).tolist()
            return [Stage(0.0, planned(day, means, costs))]
        case "slow":
            return replanned(structs.replace(day, watch=SLOW), workload, costs)
        case "replan":
            return replanned(day, workload, costs)
    return oracle(day, costs)


class Result(Struct, frozen=True):
    """``slo``: part of all requests within each of ``SCALES`` times their latency alone on one device."""

    plans: int
    moves: list[Move]
    slo: list[float]
    by_phase: list[float]  # at scale 8
    ttft99: float


def simulated(system: str, day: Day, workload: Workload, costs: Roofline) -> Result:
    problem = day.problem(day.rates(0))
    stages = stages_of(system, day, workload, costs)
    itinerary = Itinerary(Estimator(problem, costs), stages)
    cluster = Cluster(problem.models, costs, "A100-80G")
    moved = run_moving(cluster, itinerary, workload, TERMS, day.policy, free=system == "free")
    alone = CostTable(profile_of(costs, "A100-80G", {m.name: (m.cost, 1) for m in problem.models}))
    total = make_report(moved.records, kind="simulated", policy="mux", cost=alone, scales=SCALES).total
    assert total.slo is not None
    assert total.ttft is not None
    by_phase = phases(day, moved.records, alone)
    return Result(len(stages), moved.moves, total.slo.latency, by_phase, total.ttft.p99)


def phases(day: Day, records: Records, alone: CostTable) -> list[float]:
    """Attainment at scale 8 of the requests that came in each phase."""
    kept = records.on_time(alone, 8)
    phase = (records.sent // day.phase).astype(int)
    return [float(kept[phase == number].mean()) for number in range(len(day.popular))]


def went(day: Day, system: str, moves: list[Move]) -> list[str]:
    """Each move in seconds after the change of rates that it answers."""
    lines = []
    for move in moves:
        change = int(move.asked / day.phase)
        start = change * day.phase
        times = [f"{at - start:.1f}" for at in (move.asked, move.switched, move.drained)]
        how = f"{move.gap:.1f}" if move.parked else "loaded beside"
        lines.append(f"| {system} | {change} | {move.model} | {' | '.join(times)} | {how} | {move.resent} |")
    return lines


def popular(text: str) -> tuple[tuple[int, ...], ...]:
    """Raises ArgumentTypeError for anything but numbers of the day's models."""
    try:
        found = tuple(tuple(map(int, phase.split(","))) for phase in text.split())
    except ValueError:
        found = ()
    if not found or any(not 0 <= model < Day().models for phase in found for model in phase):
        raise argparse.ArgumentTypeError(
            f"{text!r}: for each phase the popular models, 0 to {Day().models - 1}, as in '0,1 2,5'"
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--phase", type=float, default=600.0, help="seconds")
    parser.add_argument("--hot", type=float, default=Day().hot, help="requests a second of a popular model")
    parser.add_argument("--popular", type=popular, default=POPULAR, help="popular models of each phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    args = parser.parse_args()
    day, costs = Day(phase=args.phase, hot=args.hot, popular=args.popular), Roofline("A100-80G")
    workload = traffic(day, args.seed)
    scales = " | ".join(f"{scale:g}x %" for scale in SCALES)
    numbers = " | ".join(f"phase {i + 1}" for i in range(len(day.popular)))
    lines = [f"# Drift\n\n{len(workload.items)} requests in {day.seconds:g} s, seed {args.seed}, "
             f"popular {day.popular}, hot {day.hot:g}/s, cold {day.cold:g}/s, lengths {day.lengths}.\n",
             f"| PLAN | plans | models moved | {scales} | TTFT p99 s | {numbers} (8x %) |",
             "|---" * (4 + len(SCALES) + len(day.popular)) + "|"]  # fmt: skip
    notes = ["", "| PLAN | change | model | asked s | switched s | drained s | gap s | resent |",
             "|---" * 8 + "|"]  # fmt: skip
    for name in args.systems:
        found = simulated(name, day, workload, costs)
        slo = " | ".join(f"{100 * value:.1f}" for value in found.slo)
        by_phase = " | ".join(f"{100 * value:.1f}" for value in found.by_phase)
        moved = len(found.moves)
        lines.append(f"| {name} | {found.plans} | {moved} | {slo} | {found.ttft99:.1f} | {by_phase} |")
        print(lines[-1], flush=True)
        if name != "free":
            notes += went(day, name, found.moves)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "drift.md").write_text("\n".join([*lines, *notes]) + "\n")
    print("\n".join([*lines, *notes]))


if __name__ == "__main__":
    main()
