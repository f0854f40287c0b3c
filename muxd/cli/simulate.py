"""``muxctl simulate``: a workload through the daemon's own scheduler, in virtual time."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from muxd.cli.failing import sentences
from muxd.cli.progress import counting

if TYPE_CHECKING:
    from muxd.config import Config
    from muxd.cost.table import CostTable
    from muxd.engine.policies import Policy
    from muxd.sim.report import Report
    from muxd.sim.workload import Workload

_PROGRAM = "muxctl"

WorkloadFile = Annotated[Path, typer.Option("--workload", help="The workload file.", metavar="W.jsonl")]
CostFile = Annotated[
    Path | None,
    typer.Option("--cost", help="The cost profile. Default: MUXD_HOME/cost.json.", metavar="FILE"),
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", help="Write the report as JSON; - prints it.", metavar="FILE")
]
PlotFile = Annotated[Path | None, typer.Option(help="Draw it.", metavar="FILE.png")]
HtmlFile = Annotated[Path | None, typer.Option(help="One page, plots and numbers.", metavar="FILE.html")]
SharedPrefix = Annotated[int, typer.Option(help="First tokens that all prompts of a model have in common.")]


def simulate(
    workload: WorkloadFile,
    policy: Annotated[
        str,
        typer.Option(help="mux, temporal, spatial, servers, fcfs, round_robin, swap; else as configured."),
    ] = "",
    swap_memory: Annotated[
        str, typer.Option(help="For swap: memory for weights, 60G. Default: one model at a time.")
    ] = "",
    swap_rate: Annotated[str, typer.Option(help="For swap: bytes a second that a load reads.")] = "10G",
    swap_start: Annotated[float, typer.Option(help="For swap: seconds of a load beside reading.")] = 1.0,
    cost: CostFile = None,
    config: Annotated[
        Path | None, typer.Option(help="Pool, shares, quotas. Default: equal shares.", metavar="muxd.toml")
    ] = None,
    like: Annotated[
        list[str] | None, typer.Option(help="MODEL=PROFILED: costs of a model that was not measured.")
    ] = None,
    shared_prefix: SharedPrefix = 0,
    json: JsonFile = None,
    png: PlotFile = None,
    html: HtmlFile = None,
) -> None:
    """Run a workload in virtual time: the daemon's scheduler and pool, costs from a profile.

    Policy swap is of the simulator alone: models are loaded when they are asked for, as llama-swap and Ollama
    do.
    """
    from muxd.cli.reports import deliver
    from muxd.config import home
    from muxd.config_load import load
    from muxd.sim.workload import read

    with sentences(_PROGRAM):
        requests = read(workload)
        settings = load(config) if config else None
        table = cost_table(cost or home() / "cost.json", settings, like or [])
        kind: str | type[Policy] = policy
        if policy == "swap":
            kind = swapping(table, requests.models, swap_memory, swap_rate, swap_start)
        deliver(run(requests, table, settings, kind, shared_prefix), json, png, html)


def swapping(
    cost: "CostTable", models: list[str], memory: str = "", rate: str = "10G", start: float = 1.0
) -> "type[Policy]":
    """The policy for these models; ``memory`` and ``rate`` are sizes. Raises ConfigError naming options."""
    from muxd.errors import ConfigError
    from muxd.sim.swap import SwapTerms, swap
    from muxd.sizes import size

    weights = {model: cost.model(model).weight_bytes for model in models}
    unknown = [model for model, nbytes in weights.items() if not nbytes]
    if unknown:
        raise ConfigError(f"swap: the profile does not say how large {unknown[0]} is: measure it anew")
    speed = size(rate, key="--swap-rate")
    if not speed or not 0 <= start < float("inf"):
        raise ConfigError(f"--swap-rate {rate!r}, --swap-start {start:g}: a load must take some time")
    room = size(memory, key="--swap-memory") if memory else max(weights.values())
    try:
        return swap(weights, SwapTerms(room, 0 if memory else 1, speed, start))
    except ValueError as error:
        raise ConfigError(f"--swap-memory {memory!r}: {error}") from None


def cost_table(path: Path, config: "Config | None", like: list[str]) -> "CostTable":
    """The profile, with the names of configured models that it knows by their folder, and ``like``."""
    from muxd.cost.profile import load
    from muxd.cost.table import CostTable
    from muxd.errors import ConfigError
    from muxd.sim.build import likenesses

    profile = load(path)
    pairs = [text.partition("=") for text in like]
    for name, sign, original in pairs:
        if not (name and sign and original):
            raise ConfigError(f"--like {name}{sign}{original}: write MODEL=PROFILED")
    known = likenesses(config, profile) if config else {}
    return CostTable(profile, {**known, **{name: original for name, _, original in pairs}}, str(path))


def run(
    workload: "Workload",
    cost: "CostTable",
    config: "Config | None" = None,
    policy: "str | type[Policy]" = "",
    shared_prefix: int = 0,
) -> "Report":
    """One simulation, with a progress bar on standard error where that is a terminal."""
    import time

    from muxd.sim.build import make_scheduler, plain_config
    from muxd.sim.report import make_report
    from muxd.sim.world import World

    settings = config or plain_config(workload.models, cost)
    kind = policy or settings.scheduler.policy
    policy = kind if isinstance(kind, str) else kind.name
    world = World(make_scheduler(settings, cost, kind), cost, workload, shared_prefix=shared_prefix)
    begun = time.perf_counter()
    with counting(f"Simulating {policy}", len(workload.items)) as advance:
        records = world.run(advance)
    took = time.perf_counter() - begun
    notes = {
        "device": f"{100 * world.device.busy / max(world.clock.now(), 1e-9):.0f}% of it computed",
        "simulation": f"{world.events} events in {took:.1f}s, {world.jumped} decode steps jumped over",
    }
    return make_report(records, kind="simulated", policy=policy, cost=cost, notes=notes)
