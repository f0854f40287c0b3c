"""MuxServe's synthetic experiment, simulated: 19 LLaMA models on 32 A100, rates by a power law.

    python benchmarks/published/synthetic.py --data DIR --out OUT [--alpha 2.1] [--scale 1.0] [--systems ...]

Runs what is not in OUT/runs yet and writes OUT/synthetic.md and OUT/synthetic.png of what is there of
``--systems``.
"""

from collections.abc import Sequence
from pathlib import Path

import setting
from cells import Row, Runs, save
from compare import described, key_of, parser, published_line, ratios, run_cell, table
from numbers_published import SYNTHETIC

WINDOW = 120.0


def main() -> None:
    options = parser(__doc__, WINDOW)
    options.add_argument("--alpha", type=float, nargs="+", default=list(setting.ALPHAS))
    options.add_argument("--scale", type=float, nargs="+", default=[rate / 20 for rate in setting.RATES])
    args = options.parse_args()
    setting.data(args.data)
    runs = Runs(args.out)
    found: dict[tuple[float, float], dict[str, Row]] = {}
    for alpha in args.alpha:
        for scale in args.scale:
            run_cell(runs, name(alpha, scale), setting.synthetic(alpha, 20 * scale), "sharegpt", args)
    for alpha in SYNTHETIC:
        for scale in SYNTHETIC[alpha]:
            keys = {system: key_of(name(alpha, scale), system, args) for system in args.systems}
            rows = {system: row for system, key in keys.items() if (row := runs.find(key))}
            if rows:
                found[alpha, scale] = rows
    text = ["# Synthetic workloads\n", described(args)]  # fmt: skip
    for (alpha, scale), rows in found.items():
        point = SYNTHETIC[alpha][scale]
        text += [f"## alpha {alpha:g}, rate scale {scale:g}\n", table(rows), *ratios(rows, point), ""]
        text += [published_line(point)]
    (args.out / "synthetic.md").write_text("\n".join(text))
    print("\n".join(text))
    draw(args.out, found, args.systems)


def name(alpha: float, scale: float) -> str:
    return f"synthetic {alpha:g} x {scale:g}"


def draw(out: Path, found: dict[tuple[float, float], dict[str, Row]], systems: Sequence[str]) -> None:
    """Figure 5: throughput over the rate by alpha, and attainment over the SLO scale at rate scale 1."""
    from matplotlib.figure import Figure

    alphas = sorted({alpha for alpha, _ in found}, reverse=True)
    figure = Figure(figsize=(4 * len(alphas), 7), layout="constrained")
    axes = figure.subplots(2, len(alphas), squeeze=False)
    for column, alpha in enumerate(alphas):
        scales = [scale for a, scale in found if a == alpha]
        for system in systems:
            points = [(s, found[alpha, s][system]) for s in scales if system in found[alpha, s]]
            xs, ys = [s for s, _ in points], [row["plain"] for _, row in points]
            axes[0][column].plot(xs, ys, marker="o", linewidth=3 if system == "mux" else 1, label=system)
            if points and points[0][0] == 1.0:
                slo = points[0][1]["slo"]
                width = 3 if system == "mux" else 1
                axes[1][column].plot(
                    [float(s) for s in slo], [100 * v for v in slo.values()], linewidth=width
                )
        axes[0][column].set_title(f"alpha {alpha:g}")
        axes[0][column].set_xlabel("rate scale")
        axes[1][column].set_xlabel("SLO scale, at rate scale 1")
        axes[1][column].set_xlim(0, 20)
    axes[0][0].set_ylabel("requests/s, plain sum")
    axes[1][0].set_ylabel("requests within the SLO, %")
    axes[0][0].legend()
    save(figure, out / "synthetic.png")


if __name__ == "__main__":
    main()
