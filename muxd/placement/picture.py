"""Who sits where, as a picture: one bar a device, its memory cut into weights, reserves and pool.

Needs matplotlib, the extra ``plots``.
"""

from importlib.util import find_spec
from pathlib import Path

from muxd.errors import ConfigError
from muxd.placement.problem import Plan, Problem, Unit

_GB = 1e9
_NAMED = 0.03  # of the memory: less is drawn without a name


def check(path: Path) -> None:
    """Raises ConfigError for a suffix that cannot be drawn, and without matplotlib."""
    if path.suffix not in (".svg", ".png"):
        raise ConfigError(f"{path}: a picture is a .svg or a .png file")
    if find_spec("matplotlib") is None:
        raise ConfigError("pictures need matplotlib: pip install 'muxd[plots]'")


def save(path: Path, plan: Plan, problem: Problem) -> None:
    """Write ``path`` (.svg or .png). Raises as ``check``."""
    check(path)
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    gpus = problem.gpus
    colours = {model.name: colormaps["tab20"](i % 20) for i, model in enumerate(problem.models)}
    figure = Figure(figsize=(max(6, 0.9 * min(gpus.count, 64)), 4.5), layout="constrained")
    axes = figure.subplots()
    ends = [0.0] * gpus.count
    for unit in plan.units:
        first = unit.host * gpus.per_host
        places = [first + gpu for gpu in unit.gpus]
        for name, part in _parts(unit, problem):
            axes.bar(
                places,
                part,
                0.92,
                [ends[p] for p in places],
                color=colours.get(name, "white"),
                edgecolor="grey",
            )
            if name and part > _NAMED * gpus.memory / _GB:
                axes.text(places[0], ends[places[0]] + part / 2, name, ha="center", va="center", fontsize=7)
            for place in places:
                ends[place] += part
        label = f"tp {unit.degree}\n{100 * min(1, unit.utilisation):.0f}%"
        axes.text(sum(places) / len(places), ends[places[0]] + 0.5, label, ha="center", fontsize=7)
    for host in range(1, gpus.hosts):
        axes.axvline(host * gpus.per_host - 0.5, color="black", linewidth=0.8)
    axes.axhline(gpus.memory / _GB, color="black", linestyle=":")
    axes.set_xticks(range(gpus.count), [str(i % gpus.per_host) for i in range(gpus.count)])
    axes.set_ylabel("GB of each device: weights, white: K and V")
    axes.set_xlabel(f"{gpus.kind}, {gpus.per_host} a host")
    axes.set_title(f"{plan.method}: {plan.served:.1f} of {plan.rate:.1f} requests/s")
    axes.margins(x=0.01)
    figure.savefig(path, dpi=120)


def _parts(unit: Unit, problem: Problem) -> list[tuple[str, float]]:
    """Name and GB on each device, the pool last and without a name."""
    models = {model.name: model for model in problem.models}
    weights = [
        (m.model, models[m.model].shape.weight_bytes(unit.degree, models[m.model].dtype) / _GB)
        for m in unit.members
    ]
    return [*weights, ("", unit.pool_bytes / _GB)]
