"""Draws which room of muxd imports which, floor by floor, and prints how many there are.

    python benchmarks/import_graph.py [--png docs/plots/rooms.png]

Floors are those of `.importlinter`; an arrow is as wide as many files of the upper room import the lower one.
"""

import argparse
import configparser
from collections import Counter
from pathlib import Path

import grimp
import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

ROOT = Path(__file__).resolve().parents[1]


def floors() -> list[list[str]]:
    """From the top down."""
    read = configparser.ConfigParser()
    read.read(ROOT / ".importlinter")
    layers = read["importlinter:contract:floors"]["layers"]
    return [[room.strip() for room in line.split(":")] for line in layers.strip().splitlines()]


def arrows() -> Counter[tuple[str, str]]:
    """Files of one room that import another."""
    graph, found = grimp.build_graph("muxd"), Counter[tuple[str, str]]()
    for module in graph.modules - {"muxd"}:
        here = module.split(".")[1]
        there = {one.split(".")[1] for one in graph.find_modules_directly_imported_by(module) if "." in one}
        found.update((here, room) for room in there - {here})
    return found


def draw(png: Path, rows: list[list[str]], found: Counter[tuple[str, str]]) -> None:
    places = {
        room: ((i + 0.5) / len(row), -level) for level, row in enumerate(rows) for i, room in enumerate(row)
    }
    figure, axes = pyplot.subplots(figsize=(11, 11), layout="constrained")
    for (here, there), count in found.items():
        if here not in places or there not in places:
            continue
        bend = 0.25 if places[here][0] == places[there][0] else 0.05
        axes.annotate(
            "", places[there], places[here],
            arrowprops={"arrowstyle": "-|>", "lw": 0.4 + count / 6, "color": "0.6", "shrinkA": 12,
                        "shrinkB": 12, "connectionstyle": f"arc3,rad={bend}"},
        )  # fmt: skip
    for room, place in places.items():
        axes.text(*place, room, ha="center", va="center", bbox={"boxstyle": "round", "fc": "w", "ec": "0.3"})
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.axis("off")
    figure.savefig(png, dpi=80)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--png", type=Path, default=ROOT / "docs/plots/rooms.png")
    rows, found = floors(), arrows()
    level = {room: i for i, row in enumerate(rows) for room in row}
    up = [pair for pair in found if level.get(pair[0], 0) >= level.get(pair[1], 99)]
    draw(parser.parse_args().png, rows, found)
    print(f"{len(level)} rooms on {len(rows)} floors, {len(found)} arrows, {len(up)} upwards or sideways")


if __name__ == "__main__":
    main()
