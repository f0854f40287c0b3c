"""Which policy serves our users' mixes: the highest rate that keeps 99 % of requests on time, simulated.

    python benchmarks/regime.py [--short] [--scene D] [--policy mux] [--markdown F] [--png F] [--json F]

Scenes A to E (``regime_scenes.py``) are three to ten models on one GPU. For every policy the rate is driven
up a ladder until both targets are missed: 99 % within five times the latency alone; 99 % with a first token
in 2 s and 100 ms a token. A point is three seeds together, at least 600 requests. One setting for all scenes.
"""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path

from msgspec import Struct, to_builtins
from provenance import markdown_table
from regime_scenes import SCENES, Kept, Scene, pooled, run

POLICIES = ("mux", "spatial", "temporal", "round_robin", "fcfs", "servers", "swap", "swap-one")
SEEDS = (0, 1, 2)
REQUESTS = 600  # a point, at least
SECONDS = 40.0  # of arrivals, of all seeds together, at least
PART = 0.99
TARGETS = ("within 5x", "2 s and 100 ms")


class Point(Struct, frozen=True):
    """Parts on time at one rate, by both targets."""

    rate: float
    relative: float
    absolute: float
    runs: list[Kept]


class Search:
    """One policy in one scene: where on the ladder each target is kept last, by bisection."""

    def __init__(self, scene: Scene, policy: str, seeds: Iterable[int] = SEEDS, seconds: float = SECONDS):
        self.scene, self.policy = scene, policy
        self._seeds, self._seconds = tuple(seeds), seconds
        self.points: dict[int, Point] = {}

    def next(self) -> int | None:
        """The rung to try next; None when both answers are known."""
        for target in (0, 1):
            low, high = self._bracket(target)
            if high - low > 1:
                return (low + high) // 2 if self.points else len(self.scene.rates) // 3
        return None

    def _bracket(self, target: int) -> tuple[int, int]:
        """The last rung that is known to keep the target, below the first that is known to miss it."""
        missed = [i for i, point in self.points.items() if self._part(point, target) < PART]
        high = min(missed, default=len(self.scene.rates))
        kept = [i for i, point in self.points.items() if i < high and self._part(point, target) >= PART]
        return max(kept, default=-1), high

    def _part(self, point: Point, target: int) -> float:
        return point.absolute if target else point.relative

    def found(self, target: int) -> float:
        """Requests a second; 0 where even the first rung is missed."""
        low, _ = self._bracket(target)
        return self.scene.rates[low] if low >= 0 else 0.0

    def point(self, rung: int) -> Point:
        rate = self.scene.rates[rung]
        seconds = max(self._seconds, REQUESTS / rate) / len(self._seeds)
        runs = [run(self.scene, self.policy, rate, seconds, seed) for seed in self._seeds]
        return Point(rate, *pooled(runs), runs)


def searched(searches: list[Search], tell: Callable[[str], None], processes: int) -> None:
    """Every search to its end; points of different searches beside each other."""
    with ProcessPoolExecutor(processes) as pool:
        asked: dict[Future[Point], tuple[Search, int]] = {}

        def ask(search: Search) -> None:
            rung = search.next()
            if rung is not None:
                asked[pool.submit(search.point, rung)] = search, rung

        for search in searches:
            ask(search)
        while asked:
            done, _ = wait(asked, return_when=FIRST_COMPLETED)
            for future in done:
                search, rung = asked.pop(future)
                point = search.points[rung] = future.result()
                tell(
                    f"{search.scene.key} {search.policy} {point.rate:g}/s: {point.relative:.1%} within 5x, "
                    f"{point.absolute:.1%} within 2 s and 100 ms"
                )
                ask(search)


def table(searches: list[Search]) -> str:
    """A row a scene and policy."""
    rows = []
    for search in searches:
        beside = [other for other in searches if other.scene.key == search.scene.key]
        mux = next((other for other in beside if other.policy == "mux"), None)
        cells = []
        for target in (0, 1):
            rate = search.found(target)
            cells.append(f"{rate:g}" if rate else f"< {search.scene.rates[0]:g}")
            if mux is None or search is mux:
                cells.append("")
            else:
                cells.append(f"{mux.found(target) / rate:.2f}" if rate else "inf")
        rows.append([search.scene.key, search.policy, *cells])
    heads = [
        "scene",
        "policy",
        "99 % within 5x, requests/s",
        "mux over it",
        "99 % in 2 s and 100 ms",
        "mux over it",
    ]
    return markdown_table(heads, rows)


def picture(searches: list[Search], file: Path) -> None:
    """Parts on time over the rate: a column a scene, a row a target."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    scenes = list({search.scene.key: search.scene for search in searches}.values())
    figure, axes = plt.subplots(2, len(scenes), figsize=(4 * len(scenes), 7), squeeze=False, sharey=True)
    for column, scene in enumerate(scenes):
        for search in (one for one in searches if one.scene.key == scene.key):
            points = [search.points[i] for i in sorted(search.points)]
            rates = [point.rate for point in points]
            for row, values in enumerate(([p.relative for p in points], [p.absolute for p in points])):
                style = "--" if search.policy.startswith("swap") else "-"
                axes[row][column].plot(rates, values, style, marker=".", label=search.policy)
        for row, name in enumerate(TARGETS):
            axes[row][column].set(
                xscale="log", xlabel="requests/s", ylim=(0.5, 1.01), title=f"{scene.key}: {name}"
            )
            axes[row][column].axhline(PART, color="grey", linewidth=0.5)
            axes[row][column].xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes[row][column].xaxis.set_major_formatter(ScalarFormatter())
            axes[row][column].xaxis.set_minor_formatter(NullFormatter())
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--scene", action="append", choices=[scene.key for scene in SCENES])
    parser.add_argument("--policy", action="append", choices=POLICIES)
    parser.add_argument(
        "--short", action="store_true", help="one seed, few requests: the order, not the rates"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--png", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    seeds, seconds = (SEEDS[:1], 8.0) if args.short else (SEEDS, SECONDS)
    searches = [
        Search(scene, policy, seeds, seconds)
        for scene in SCENES
        if scene.key in (args.scene or [scene.key])
        for policy in args.policy or POLICIES
    ]
    searched(searches, partial(print, flush=True), args.processes)
    text = table(searches)
    print(text)
    if args.markdown:
        args.markdown.write_text(text)
    if args.png:
        picture(searches, args.png)
    if args.json:
        kept = [
            {"scene": one.scene.key, "policy": one.policy, "points": to_builtins(list(one.points.values()))}
            for one in searches
        ]
        args.json.write_text(json.dumps(kept))


if __name__ == "__main__":
    main()
