"""Draws the pictures of docs/how-it-works.md: simulated runs of the daemon's own scheduler, pool and planner.

    python benchmarks/pictures.py [--out docs/plots]

turns.png: who ran when in the same second of one workload, by policy. Three 8B models on one H200 by its
roofline (`regime_scenes.py`, scene B; nothing has run on a GPU), 40 requests/s.
pool.png: who holds the pool while the work goes from one model to another. Three models on the same device, a
pool of 4 GB, so small that they must share it.
plan.png: the plan of `plan_check.py`, 30 models on 8 H100. The search is cut off by time, so that another
machine may find a plan a little different.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from plan_check import costs as plan_costs
from plan_check import problem
from regime_scenes import MANY, SCENES, config, costs, workload

from muxd.cli.planning import Setting, make
from muxd.cli.searching import Patience
from muxd.config import Config, ModelConfig, PoolConfig
from muxd.cost.analytic import rungs
from muxd.engine.actions import Action, Event
from muxd.engine.journal import Journal
from muxd.engine.scheduler import Scheduler
from muxd.engine.trace import Sample, Trace
from muxd.placement import picture
from muxd.sim.build import make_scheduler
from muxd.sim.generate import mixed
from muxd.sim.traffic import ModelTraffic
from muxd.sim.world import World

ROOT = Path(__file__).resolve().parents[1]
SCENE = next(scene for scene in SCENES if scene.key == "B")  # three models of one size
COLOURS = dict(zip(SCENE.models, ("#1f77b4", "#ff7f0e", "#2ca02c"), strict=True))
RATE, SECONDS, SEED = 40.0, 6.0, 1
SHOWN = (3.0, 3.6)  # seconds
POOL, PHASE = 4 * 10**9, 30.0  # bytes, seconds
QUIET, BUSY = 0.6, 14.0  # requests a second of a model, and times as many in its phase
Quotas = list[tuple[float, dict[str, int]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "plots")
    out: Path = parser.parse_args().out
    turns(out / "turns.png")
    pool(out / "pool.png")
    setting = Setting(problem(0), plan_costs(), rungs())
    picture.save(out / "plan.png", make(setting, ["ours"], Patience(10.0))[0]["ours"][0], setting.problem)


# ---- who runs when ---------------------------------------------------------------------------------


def turns(png: Path) -> None:
    policies = {"mux": "mux: batches of several models at once, each on a part of the device",
                "temporal": "temporal: one batch at a time on the whole device",
                "spatial": "spatial: a fixed third of the device for each"}  # fmt: skip
    figure, panels = pyplot.subplots(len(policies), figsize=(10, 7.5), layout="constrained", sharex=True)
    for axes, (policy, title) in zip(panels, policies.items(), strict=True):
        _lanes(axes, _traced(policy))
        axes.set_title(title, loc="left", fontsize=10)
    panels[-1].set_xlabel("seconds of virtual time")
    figure.legend(
        handles=[Patch(color="0.25", label="prefill"), Patch(color="0.75", label="decode"),
                 *(Patch(color=colour, label=name) for name, colour in COLOURS.items())],
        loc="outside lower center", ncols=5, fontsize=9,
    )  # fmt: skip
    figure.savefig(png, dpi=80)
    pyplot.close(figure)


def _traced(policy: str) -> Trace:
    """Every step is looked at, and none jumped over."""
    cost = costs(SCENE.key, policy == "spatial")
    scheduler = make_scheduler(config(SCENE, policy), cost, policy)
    journal = Journal(scheduler.lanes, scheduler.ledger)
    made = workload(SCENE, RATE, SECONDS, SEED)
    world = World(scheduler, cost, made, jumps=False, observe=journal.observe)
    world.run()
    return journal.timeline.snapshot(world.clock.now())


def _lanes(axes: Axes, trace: Trace) -> None:
    """A row a model, prefill above decode; a bar is as high as its share."""
    for row, (model, colour) in enumerate(COLOURS.items()):
        for span in trace.spans:
            if span.model != model or span.end is None or span.end < SHOWN[0] or span.start > SHOWN[1]:
                continue
            prefill = span.phase == "prefill"
            height = 0.44 * span.share / 100
            axes.broken_barh(
                [(span.start, span.end - span.start)], (-row + (0.02 if prefill else -0.46), height),
                facecolors=colour, alpha=1.0 if prefill else 0.45, edgecolor="white", linewidth=0.3,
            )  # fmt: skip
        axes.axhline(-row - 0.5, color="0.8", linewidth=0.6)
    axes.set_xlim(*SHOWN)
    axes.set_ylim(-len(COLOURS) + 0.5, 0.5)
    axes.set_yticks(range(0, -len(COLOURS), -1), list(COLOURS), fontsize=8)


# ---- who holds what --------------------------------------------------------------------------------


class Watch:
    """The journal of a unit, and its quotas beside it."""

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self.journal = Journal(scheduler.lanes, scheduler.ledger)
        self.quotas: Quotas = []

    def observe(self, event: Event, actions: list[Action], now: float) -> None:
        self.journal.observe(event, actions, now)
        if not self.quotas or now - self.quotas[-1][0] > 0.1:
            self.quotas.append((now, {name: self._scheduler.quota(name) for name in SCENE.models}))


def pool(png: Path) -> None:
    """Each model in turn is asked fourteen times as much as the others."""
    cost = costs(SCENE.key, False)
    models = [ModelConfig(name, name, max_running=128, max_queue=MANY) for name in SCENE.models]
    scheduler = make_scheduler(Config(pool=PoolConfig(str(POOL)), model=models), cost)
    watch = Watch(scheduler)
    ends = [PHASE * number for number in range(len(models) + 1)]
    traffic = [
        ModelTraffic(
            name, QUIET, "lognormal:600,300", phases=[(ends[number], ends[number + 1], BUSY)]
        )
        for number, name in enumerate(SCENE.models)
    ]  # fmt: skip
    made = mixed(traffic, ends[-1], seed=SEED)
    world = World(scheduler, cost, made, jumps=False, observe=watch.observe)
    world.run()
    samples = watch.journal.timeline.snapshot(world.clock.now()).samples
    _draw_pool(png, samples, watch.quotas, scheduler.ledger.total_blocks, ends)


def _draw_pool(png: Path, samples: list[Sample], quotas: Quotas, total: int, ends: list[float]) -> None:
    figure, (held, rights) = pyplot.subplots(2, figsize=(10, 6), layout="constrained", sharex=True)
    samples = samples[:: max(1, len(samples) // 1500)]
    times = [sample.time for sample in samples]
    parts = [[100 * sample.used[n] / total for sample in samples] for n in range(len(COLOURS))]
    parts.append([100 * sample.cached / total for sample in samples])
    held.stackplot(
        times, parts, labels=[*COLOURS, "kept for later prompts"], colors=[*COLOURS.values(), "0.8"]
    )
    held.set_ylabel("% of the pool, in use")
    for name, colour in COLOURS.items():
        marks = [100 * quota[name] / total for _, quota in quotas]
        rights.step([at for at, _ in quotas], marks, color=colour, where="post")
    rights.set_ylabel("quota, % of the pool")
    rights.set_xlabel("seconds of virtual time")
    for axes in (held, rights):
        axes.set_xlim(0, ends[-1])
        axes.set_ylim(0, 100)
        for end in ends[1:-1]:
            axes.axvline(end, color="black", linewidth=0.8, linestyle=":")
    handles, labels = held.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(png, dpi=80)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
