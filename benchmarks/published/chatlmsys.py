"""MuxServe's ChatLMSYS experiment, simulated: 16 LLaMA models on 32 A100 at the trace's rates, condensed.

    python benchmarks/published/chatlmsys.py --data DIR --out OUT [--mean 11.9] [--systems ...]

Rates are the files' (means 3.0, 7.1 and 11.9 requests a second a model) or scaled from the last (4.8, 9.5).
Runs what is not in OUT/runs yet and writes OUT/chatlmsys.md and OUT/chatlmsys.png of what is there of
``--systems``.
"""

from collections.abc import Sequence
from pathlib import Path

import setting
from cells import Row, Runs, save
from compare import described, key_of, parser, published_line, ratios, run_cell, table
from numbers_published import CHATLMSYS

from muxd.placement.problem import Problem

WINDOW = 120.0
FILES = {3.0: 500, 7.1: 1200, 11.9: 2000}


def main() -> None:
    options = parser(__doc__, WINDOW)
    options.add_argument("--mean", type=float, nargs="+", default=list(CHATLMSYS), choices=list(CHATLMSYS))
    args = options.parse_args()
    folder = setting.data(args.data)
    runs = Runs(args.out)
    for mean in args.mean:
        run_cell(runs, f"chatlmsys {mean:g}", problem_of(folder, mean), "chatlmsys", args)
    found: dict[float, dict[str, Row]] = {}
    for mean in CHATLMSYS:
        keys = {system: key_of(f"chatlmsys {mean:g}", system, args) for system in args.systems}
        rows = {system: row for system, key in keys.items() if (row := runs.find(key))}
        if rows:
            found[mean] = rows
    text = ["# ChatLMSYS rates\n", described(args)]  # fmt: skip
    for mean, rows in found.items():
        point = CHATLMSYS[mean]
        text += [f"## mean {mean:g} requests/s a model\n", table(rows), *ratios(rows, point), ""]
        text += [published_line(point)]
    (args.out / "chatlmsys.md").write_text("\n".join(text))
    print("\n".join(text))
    draw(args.out, found, args.systems)


def problem_of(folder: Path, mean: float) -> Problem:
    if mean in FILES:
        return setting.chatlmsys(folder, FILES[mean])
    return setting.chatlmsys_at(folder, mean)


def draw(out: Path, found: dict[float, dict[str, Row]], systems: Sequence[str]) -> None:
    """Figure 7: throughput and attainment over the rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    for system in systems:
        points = [(mean, rows[system]) for mean, rows in found.items() if system in rows]
        xs = [mean for mean, _ in points]
        for axes, values in zip(
            panels,
            ([r["weighted"] for _, r in points], [r["plain"] for _, r in points],
             [100 * r["slo"]["8"] for _, r in points]),
            strict=True,
        ):  # fmt: skip
            axes.plot(xs, values, marker="o", linewidth=3 if system == "mux" else 1, label=system)
    for axes, title in zip(
        panels, ("weighted requests/s", "plain requests/s", "within 8x alone, %"), strict=True
    ):
        axes.set_title(title)
        axes.set_xlabel("mean requests/s a model")
    panels[0].legend()
    save(figure, out / "chatlmsys.png")


if __name__ == "__main__":
    main()
