"""``muxctl plan``: which models share which GPUs, what that serves, and what other ways would."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muxd.cli.failing import sentences

if TYPE_CHECKING:
    from muxd.cost.estimate import Costs
    from muxd.cost.peaks import Peak
    from muxd.cost.profile import ModelProfile, Profile
    from muxd.placement.loads import Traffic
    from muxd.placement.planner import Method
    from muxd.placement.problem import Gpus, ModelLoad, Plan, Problem
    from muxd.sim.workload import Workload

_PROGRAM = "muxctl"
_OTHERS = "describe others in a file (--device), or measure them with `muxd profile` (--cost)"

ModelsFile = Annotated[Path, typer.Option("--models", help="Models and rates.", metavar="models.toml")]
GpuText = Annotated[
    str, typer.Option("--gpus", help="Devices of one host: 8xA100-80G, 4xH200.", metavar="NxKIND-MEM")
]
TableFile = Annotated[
    Path | None, typer.Option("--table", help="MuxServe's latency table.", metavar="llama.json")
]
CostFile = Annotated[
    Path | None, typer.Option("--cost", help="A profile by `muxd profile`.", metavar="cost.json")
]
DeviceFile = Annotated[
    Path | None, typer.Option("--device", help="What a GPU that is not known can do.", metavar="gpu.toml")
]
Seconds = Annotated[
    float, typer.Option("--seconds", min=0.1, help="Search no longer; Ctrl-C takes what is found by then.")
]
Requests = Annotated[
    int, typer.Option("--requests", min=0, help="Simulate so many of each unit; 0: simulate nothing.")
]
OutFolder = Annotated[Path | None, typer.Option("--out", help="Write muxd.toml files.", metavar="DIR")]


def plan(
    models: ModelsFile,
    gpus: GpuText,
    hosts: Annotated[int, typer.Option(min=1, help="Hosts that are alike.")] = 1,
    workload: Annotated[
        Path | None, typer.Option(help="Take rates and lengths from it.", metavar="W.jsonl")
    ] = None,
    compare: Annotated[
        str, typer.Option(help="Also show: temporal,spatial,greedy,naive,released,ours.", metavar="METHODS")
    ] = "",
    method: Annotated[str, typer.Option(help="Whose plan is printed and written.")] = "ours",
    overbook: Annotated[int, typer.Option(min=0, max=100, help="Percent of shares above 100.")] = 0,
    table: TableFile = None,
    cost: CostFile = None,
    device: DeviceFile = None,
    seconds: Seconds = 10.0,
    requests: Requests = 300,
    out: OutFolder = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it.", metavar="FILE.svg")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan which models share which GPUs. Costs: a roofline of the GPUs, or --table, or --cost.

    models.toml has one table for each model:

    [[model]] name = "chat", size = "llama-3-8b" (or path = "models/chat"), rate = 4.5, prompt_tokens = 161,
    output_tokens = 337, and if wanted dtype, kv_dtype, weight, ttft_slo, tpot_slo.

    The best few plans are simulated for a while, and the one that keeps most requests on time is taken. A GPU
    that is not known is described by --device, TOML or JSON: name, flops (dense, 16-bit), bandwidth, link
    (bytes a second), memory (bytes).
    """
    import msgspec

    from muxd.cli.plan_tables import compared, shown
    from muxd.cli.planning import Setting, make, tried
    from muxd.cli.searching import patience
    from muxd.cost.peaks import read as read_device
    from muxd.errors import ConfigError
    from muxd.placement.loads import loads, parse_gpus, read
    from muxd.placement.picture import check as check_picture
    from muxd.placement.problem import Problem
    from muxd.sim.workload import read as read_workload

    with sentences(_PROGRAM):
        if sum(map(bool, (table, cost, device))) > 1:
            raise ConfigError("--table, --cost and --device: give one of them")
        peak = read_device(device) if device else None
        entries, devices = read(models), parse_gpus(gpus, hosts, peak)
        asked = read_workload(workload) if workload else None
        found = loads(entries, models, traffic(asked) if asked else None)
        if picture is not None:
            check_picture(picture)
        found, costs, rungs = _costed(found, devices, table, cost, peak)
        setting = Setting(Problem(tuple(found), devices, overbook), costs, rungs, asked)
        wanted = _methods(method, compare)
        with patience(seconds) as limit:
            plans, failed = make(setting, wanted, limit)
            if wanted[0] not in plans:
                raise ConfigError(failed[wanted[0]])
            chosen = tried(setting, plans[wanted[0]], limit, requests)
        typer.echo(msgspec.json.encode(chosen).decode() if json else shown(chosen, setting.problem))
        if compare and not json:
            best = {name: candidates[0] for name, candidates in plans.items()}
            typer.echo("\n" + compared({**best, wanted[0]: chosen}, failed, setting.problem))
        _write(chosen, setting.problem, out, picture)


def traffic(workload: "Workload") -> "dict[str, Traffic]":
    """Mean rate and lengths of each model in it."""
    from muxd.placement.loads import Traffic
    from muxd.sim.workload import Item

    by_model: dict[str, list[Item]] = {}
    for item in workload.items:
        by_model.setdefault(item.model, []).append(item)
    seconds = max(workload.duration, 1e-9)
    return {
        name: Traffic(
            rate=len(items) / seconds,
            prompt=max(1, round(sum(item.prompt_tokens for item in items) / len(items))),
            output=max(1, round(sum(item.output_tokens for item in items) / len(items))),
        )
        for name, items in by_model.items()
    }


def _costed(
    loads: "list[ModelLoad]", gpus: "Gpus", table: Path | None, cost: Path | None, peak: "Peak | None"
) -> "tuple[list[ModelLoad], Costs, list[int]]":
    """The models under their names in the costs, the costs, and the shares that the devices have."""
    from muxd.cost.analytic import Roofline, rungs
    from muxd.cost.peaks import CAPTURED
    from muxd.cost.peaks import peak as known_peak
    from muxd.cost.profile import load as read_profile
    from muxd.cost.profiled import Profiled
    from muxd.cost.published import Published
    from muxd.cost.table import CostTable

    if table:
        return loads, Published.read(table), rungs()
    if cost:
        profile = read_profile(cost)
        named = [_measured(load, profile, cost) for load in loads]
        return named, Profiled(CostTable(profile, source=str(cost))), profile.device.rungs
    own = [_own_cost(load) for load in loads]
    dtypes = {load.cost: load.dtype for load in own}
    shapes = {load.cost: load.shape for load in own}
    return own, Roofline(peak or known_peak(gpus.kind, "--gpus", _OTHERS), shapes, CAPTURED, dtypes), rungs()


def _measured(load: "ModelLoad", profile: "Profile", source: Path) -> "ModelLoad":
    """Under the name of its size in the profile, else as the simulator finds it. Raises ConfigError."""
    import shlex

    import msgspec

    from muxd.cost.profile import known_as
    from muxd.errors import ConfigError

    if load.cost in profile.models:
        return load
    kinds = load.dtype, load.shape.kv_dtype
    name = known_as(profile, load.name, load.path, *kinds)
    if name is None:
        known = ", ".join(f"{other} ({_form(model)})" for other, model in profile.models.items())
        command = ["muxd", "profile", load.path or "FOLDER", "--name", load.name]
        command += ["--dtype", kinds[0], "--kv-dtype", kinds[1], "--out", str(source)]
        wanted = f"{Path(load.cost).name}, {kinds[0]}, {kinds[1]} K and V"
        raise ConfigError(
            f"{source} has no costs of {load.name!r} ({wanted}), "
            f"only of: {known or 'none'}; `{shlex.join(command)}` measures it"
        )
    return msgspec.structs.replace(load, cost=name)


def _form(model: "ModelProfile") -> str:
    folder = f"{model.folder}, " if model.folder else ""
    weights = f", {model.weights} weights" if model.weights != "file" else ""
    return f"{folder}{model.shape.dtype}, {model.shape.kv_dtype} K and V{weights}"


def _own_cost(load: "ModelLoad") -> "ModelLoad":
    """A roofline knows what it costs to read weights, K and V of each type."""
    import msgspec

    kinds: list[str] = [load.dtype] if load.dtype != "bfloat16" else []
    kinds += [f"{load.shape.kv_dtype} K and V"] if load.shape.kv_dtype != "auto" else []
    return msgspec.structs.replace(load, cost=", ".join([load.cost, *kinds]))


def _methods(method: str, compare: str) -> "list[Method]":
    """The plan's own first, each once. Raises ConfigError for a method that is not known."""
    from muxd.errors import ConfigError
    from muxd.placement.planner import METHODS

    known: dict[str, Method] = {name: name for name in METHODS}
    names = [method, *(name.strip() for name in compare.split(",") if name.strip())]
    for name in names:
        if name not in known:
            raise ConfigError(f"--compare {name!r}: known are {', '.join(METHODS)}")
    return [known[name] for name in dict.fromkeys(names)]


def _write(plan: "Plan", problem: "Problem", out: Path | None, picture: Path | None) -> None:
    from muxd.errors import ConfigError
    from muxd.placement import picture as drawing
    from muxd.placement.settings import files

    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            for name, text in files(plan, problem).items():
                (out / name).write_text(text)
        if picture is not None:
            drawing.save(picture, plan, problem)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from None
