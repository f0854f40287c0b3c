"""``muxctl plan``: which models share which GPUs, what that serves, and what other ways would."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muxd.cli.failing import sentences
from muxd.cli.progress import counting

if TYPE_CHECKING:
    from muxd.cost.estimate import Costs
    from muxd.cost.profile import ModelProfile, Profile
    from muxd.placement.loads import Traffic
    from muxd.placement.planner import Method
    from muxd.placement.problem import Gpus, ModelLoad, Plan, Problem

_PROGRAM = "muxctl"

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
    out: OutFolder = None,
    picture: Annotated[Path | None, typer.Option(help="Draw it.", metavar="FILE.svg")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Plan which models share which GPUs. Costs: a roofline of the GPUs, or --table, or --cost.

    models.toml has one table for each model:

    [[model]] name = "chat", size = "llama-3-8b" (or path = "models/chat"), rate = 4.5, prompt_tokens = 161,
    output_tokens = 337, and if wanted dtype, kv_dtype, weight, ttft_slo, tpot_slo.
    """
    import msgspec

    from muxd.errors import ConfigError
    from muxd.placement.loads import loads, parse_gpus, read
    from muxd.placement.picture import check as check_picture
    from muxd.placement.problem import Problem

    with sentences(_PROGRAM):
        entries, devices = read(models), parse_gpus(gpus, hosts)
        found = loads(entries, models, traffic(workload) if workload else None)
        if picture is not None:
            check_picture(picture)
        if table and cost:
            raise ConfigError("--table and --cost: give one of them")
        found, costs = _costed(found, devices, table, cost)
        problem = Problem(tuple(found), devices, overbook)
        wanted = _methods(method, compare)
        plans, failed = make(problem, costs, wanted)
        if method not in plans:
            raise ConfigError(failed[wanted[0]])
        chosen = plans[wanted[0]]
        typer.echo(msgspec.json.encode(chosen).decode() if json else _shown(chosen, problem))
        if compare and not json:
            typer.echo("\n" + _compared(plans, failed, problem))
        _write(chosen, problem, out, picture)


def make(
    problem: "Problem", costs: "Costs", methods: "list[Method]"
) -> "tuple[dict[Method, Plan], dict[Method, str]]":
    """A plan by each method, and why some have none. Raises ConfigError where no method could have one."""
    from muxd.errors import ConfigError
    from muxd.placement.estimator import Estimator
    from muxd.placement.planner import default_effort, make_plan

    appraiser, effort = Estimator(problem, costs), default_effort(len(problem.models))
    plans: dict[Method, Plan] = {}
    failed: dict[Method, str] = {}
    for method in methods:
        with counting(f"Planning {method}", effort.total(len(problem.models))) as advance:
            try:
                plans[method] = make_plan(method, appraiser, effort, advance)
            except ConfigError as error:
                failed[method] = error.message
    return plans, failed


def traffic(path: Path) -> "dict[str, Traffic]":
    """Mean rate and lengths of each model in a workload file."""
    from muxd.placement.loads import Traffic
    from muxd.sim.workload import Item, read

    workload = read(path)
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
    loads: "list[ModelLoad]", gpus: "Gpus", table: Path | None, cost: Path | None
) -> "tuple[list[ModelLoad], Costs]":
    """The models under their names in the costs, and the costs."""
    from muxd.cost.analytic import Roofline
    from muxd.cost.profile import load as read_profile
    from muxd.cost.profiled import Profiled
    from muxd.cost.published import Published
    from muxd.cost.table import CostTable

    if table:
        return loads, Published.read(table)
    if cost:
        profile = read_profile(cost)
        return [_measured(load, profile, cost) for load in loads], Profiled(
            CostTable(profile, source=str(cost))
        )
    own = [_own_cost(load) for load in loads]
    dtypes = {load.cost: load.dtype for load in own}
    return own, Roofline(gpus.kind, {load.cost: load.shape for load in own}, dtype=dtypes)


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
    return f"{folder}{model.shape.dtype}, {model.shape.kv_dtype} K and V"


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


def _shown(plan: "Plan", problem: "Problem") -> str:
    """Units and their models, then what is one number."""
    from muxd.cli.tables import render, size
    from muxd.placement.problem import attainment
    from muxd.sim.report import seconds

    rows = []
    for unit in plan.units:
        where = f"{unit.host}: {','.join(map(str, unit.gpus))}"
        if not unit.members:
            rows.append([where, "-", "idle", *["-"] * 8])
        for i, member in enumerate(unit.members):
            first = [where, f"{100 * unit.utilisation:.0f}%"] if i == 0 else ["", ""]
            rows.append(
                [*first, member.model, f"{member.prefill_share}/{member.decode_share}%", str(member.batch),
                 f"{100 * member.weight:.0f}%", size(unit.pool_bytes) if i == 0 else "",
                 f"{member.rate:.2f}", f"{member.served:.2f}",
                 "overloaded" if member.ttft is None else seconds(member.ttft), seconds(member.tpot)]
            )  # fmt: skip
    headers = ("HOST: GPUS", "USED", "MODEL", "SHARES", "BATCH", "QUOTA", "POOL", "ASKED/S", "SERVED/S",
               "TTFT", "TPOT")  # fmt: skip
    met = attainment(plan, problem)
    numbers = {
        "method": plan.method,
        "served": f"{plan.served:.2f} of {plan.rate:.2f} requests/s",
        "used": f"{100 * plan.utilisation:.0f}% of the devices' shares and time",
        **(
            {"slo": f"{100 * met:.1f}% of the rate with targets, by predicted means"}
            if met is not None
            else {}
        ),
    }
    return render(headers, rows) + "\n\n" + "\n".join(f"{name:<9}{value}" for name, value in numbers.items())


def _compared(plans: "dict[Method, Plan]", failed: "dict[Method, str]", problem: "Problem") -> str:
    from muxd.cli.tables import render
    from muxd.placement.problem import attainment

    best = max(plan.served for plan in plans.values())
    rows = []
    for name, plan in plans.items():
        met = attainment(plan, problem)
        slo = "-" if met is None else f"{100 * met:.1f}%"
        part = f"{100 * plan.served / best:.0f}%"
        rows.append([name, f"{plan.served:.2f}", part, f"{100 * plan.utilisation:.0f}%", slo, ""])
    rows += [[name, "-", "-", "-", "-", why] for name, why in failed.items()]
    return render(("METHOD", "SERVED/S", "OF BEST", "USED", "SLO", ""), rows)


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
