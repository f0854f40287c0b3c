"""Placement: what a plan is worth by each method, how far from the optimum, and how the time grows.

    python benchmarks/placement.py inputs DIR     # ChatLMSYS rates and MuxServe's table of an A100 in DIR
    python benchmarks/placement.py exact [--cases 20]
    python benchmarks/placement.py growth [--sizes 16:8,...] [--png FILE]

``inputs`` judges all methods by the released system's own arithmetic and objective. ``exact`` prints the gap
to the optimum on random cases of up to 6 models and 4 GPUs. ``growth`` plans models:GPUs on H100s by their
roofline, rates by a power law (alpha 0.9), and prints seconds, steps and what is served.
"""

import argparse
import time
from pathlib import Path
from random import Random

import msgspec

from muxd.cost.analytic import Roofline
from muxd.cost.published import Published
from muxd.cost.shapes import CATALOGUE
from muxd.errors import ConfigError
from muxd.placement.appraiser import layout_value
from muxd.placement.construct import construct
from muxd.placement.estimator import Estimator
from muxd.placement.exact import optimum
from muxd.placement.planner import Method, default_effort, make_plan
from muxd.placement.problem import Gpus, ModelLoad, Problem
from muxd.placement.released import OUTPUT, PROMPT, Released
from muxd.placement.sets import Sets

GB = 10**9
SHAPES = ["llama-3.2-1b", "llama-3.2-3b", "llama-3-8b", "qwen2.5-14b", "qwen2.5-32b", "llama-3-70b"]
PARTS = [30, 25, 25, 12, 6, 2]  # percent of the models
SIZES = "16:8,32:16,64:32,125:64,250:128,500:256,1000:512"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["inputs", "exact", "growth"])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--load", type=float, default=40.0, help="requests a second for each GPU")
    parser.add_argument("--png", type=Path)
    args = parser.parse_args()
    if args.what == "inputs":
        inputs(args.folder)
    elif args.what == "exact":
        gaps(args.cases)
    else:
        growth([tuple(map(int, size.split(":"))) for size in args.sizes.split(",")], args)


# ---- the published inputs ----------------------------------------------------------------------------


def chatlmsys(path: Path) -> Problem:
    """A workload file of MuxServe's benchmark: 16 models, 4 hosts of 8."""
    import yaml

    known = yaml.safe_load(path.read_text())
    models = tuple(
        ModelLoad(m["name"], m["model"], CATALOGUE[m["model"]], m["rate"], PROMPT, OUTPUT)
        for m in known["models"]
    )
    cluster = known["cluster"]
    return Problem(models, Gpus("A100-80G", 80 * GB, cluster["ngpus_per_node"], cluster["nnodes"]))


def inputs(folder: Path) -> None:
    table = Published.read(folder / "llama-a100-latency.json")
    print(f"{'input':<18} {'method':<9} {'objective':>9} {'served/s':>9} {'of':>7} {'seconds':>8}")
    methods: tuple[Method, ...] = ("naive", "released", "greedy", "spatial", "ours")
    for path in sorted(folder.glob("chatlmsys-*.yaml")):
        for method in methods:
            problem = chatlmsys(path)
            begun = time.perf_counter()
            plan = make_plan(method, Released(problem, table))
            took = time.perf_counter() - begun
            print(
                f"{path.stem:<18} {method:<9} {plan.objective:>9.3f} {plan.served:>9.1f} {plan.rate:>7.1f} "
                f"{took:>8.2f}"
            )


# ---- random small cases against the optimum ----------------------------------------------------------


def small(seed: int) -> Problem:
    """2 to 6 models on 1, 2 or 4 A100s, from idle to overloaded."""
    draw = Random(seed)
    gpus = draw.choice([1, 2, 4])
    shapes = SHAPES[: 3 if gpus == 1 else 4]
    count = draw.randint(2, 6)
    load = gpus * draw.choice([5, 30, 100])
    popular = [draw.random() ** 2 + 0.02 for _ in range(count)]
    return Problem(
        tuple(
            ModelLoad(
                f"m{i}",
                name := draw.choice(shapes),
                CATALOGUE[name],
                load * part / sum(popular),
                draw.choice([64, 161, 512]),
                draw.choice([64, 337]),
            )
            for i, part in enumerate(popular)
        ),
        Gpus("A100-80G", 80 * GB, gpus),
    )


def gaps(cases: int) -> None:
    costs = Roofline("a100")
    print(f"{'case':>4} {'models':>6} {'GPUs':>4} {'optimum':>9} {'ours':>8} {'greedy':>8} {'naive':>8}")
    worst = 0.0
    for seed in range(cases):
        problem = small(seed)
        appraiser = Estimator(problem, costs)
        best = layout_value(appraiser, optimum(Sets(appraiser)))
        cells = []
        for method in ("ours", "greedy", "naive"):
            try:
                cells.append(1 - make_plan(method, appraiser).objective / best)
            except ConfigError:
                cells.append(float("nan"))
        worst = max(worst, cells[0])
        shown = " ".join(f"{100 * gap:>7.2f}%" for gap in cells)
        print(f"{seed:>4} {len(problem.models):>6} {problem.gpus.count:>4} {best:>9.3f} {shown}", flush=True)
    print(f"gap of ours to the optimum: at most {100 * worst:.2f} %")


# ---- growth ------------------------------------------------------------------------------------------


def crowd(models: int, gpus: int, load: float, seed: int = 0) -> Problem:
    """Popularity by a power law, sizes by ``PARTS`` in random order, on hosts of 8."""
    draw = Random(seed)
    names = draw.choices(SHAPES, PARTS, k=models)
    popular = [1 / (i + 1) ** 0.9 for i in range(models)]
    # The head of the power law is cut: one model needs no more than a host can serve.
    popular = [min(part, sum(popular) / models * 8) for part in popular]
    loads = tuple(
        ModelLoad(f"llm-{i}", name, CATALOGUE[name], load * gpus * part / sum(popular), PROMPT, OUTPUT)
        for i, (name, part) in enumerate(zip(names, popular, strict=True))
    )
    return Problem(loads, Gpus("H100", 80 * GB, min(8, gpus), max(1, gpus // 8)))


def growth(sizes: list[tuple[int, ...]], args: argparse.Namespace) -> None:
    print(
        f"{'models':>6} {'GPUs':>5} {'construct s':>11} {'ours s':>8} {'asked/s':>9} {'construct':>9} "
        f"{'ours':>9}"
    )
    found = []
    for models, gpus in sizes:
        problem = crowd(models, gpus, args.load)
        appraiser = Estimator(problem, Roofline("h100"))
        begun = time.perf_counter()
        first = construct(Sets(appraiser))
        built = time.perf_counter() - begun
        begun = time.perf_counter()
        effort = msgspec.structs.replace(default_effort(models), greedy_models=0, sets=0)
        plan = make_plan("ours", Estimator(problem, Roofline("h100")), effort)
        took = time.perf_counter() - begun
        found.append((models, built, took))
        value = layout_value(appraiser, first)
        print(
            f"{models:>6} {gpus:>5} {built:>11.1f} {took:>8.1f} {problem.rate:>9.1f} {value:>9.1f} "
            f"{plan.objective:>9.1f}",
            flush=True,
        )
    if args.png:
        draw(args.png, found)


def draw(path: Path, found: list[tuple[int, float, float]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    counts = [models for models, _, _ in found]
    axes.loglog(counts, [built for _, built, _ in found], marker="o", label="first layout")
    axes.loglog(counts, [took for _, _, took in found], marker="o", label="plan")
    axes.set_xlabel("models (half as many GPUs)")
    axes.set_ylabel("seconds")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
