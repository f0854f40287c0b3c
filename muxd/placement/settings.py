"""A plan as muxd.toml: one file for each host, whose muxd serves all its devices.

A unit over several devices is a mesh, over all of which its models are cut.

Shares and ``max_running`` are not written: muxd divides a device among who is there, and a batch that is
capped at its predicted mean has no room for bursts.
"""

from muxd import toml
from muxd.placement.problem import Member, Plan, Problem, Unit


def files(plan: Plan, problem: Problem) -> dict[str, str]:
    """File name -> text: ``host-0.toml``."""
    by_host: dict[int, list[Unit]] = {}
    for unit in sorted((unit for unit in plan.units if unit.members), key=lambda unit: unit.gpus):
        by_host.setdefault(unit.host, []).append(unit)
    return {f"host-{host}.toml": _text(units, problem) for host, units in by_host.items()}


def _text(units: list[Unit], problem: Problem) -> str:
    plain = len(units) == 1 and units[0].degree == 1
    host, gpus = units[0].host, [gpu for unit in units for gpu in unit.gpus]
    lines = [f"# Host {host}, {problem.gpus.kind} {','.join(map(str, gpus))}", *_heading(units)]
    if plain:
        lines += ["", "[pool]", f'bytes = "{units[0].pool_bytes}"']
    else:
        for unit in units:
            lines += ["", "[[device]]", f'name = "{_name(unit)}"', f'pool = "{unit.pool_bytes}"']
    lines += ["", "[scheduler]", f"overbook = {problem.overbook}"]
    for unit in units:
        for member in unit.members:
            lines += _model(member, problem, unit, pinned=len(units) > 1)
    return "\n".join(lines) + "\n"


def _name(unit: Unit) -> str:
    return "+".join(f"cuda:{gpu}" for gpu in unit.gpus)


def _heading(units: list[Unit]) -> list[str]:
    if len(units) == 1 and units[0].degree == 1:
        return [f"# Start muxd with CUDA_VISIBLE_DEVICES={units[0].gpus[0]}", "# One device."]
    return ["# Without a line `device` muxd may move a model with tp = 1 where its work has gone."]


def _model(member: Member, problem: Problem, unit: Unit, *, pinned: bool) -> list[str]:
    load = next(model for model in problem.models if model.name == member.model)
    missing = "" if load.path else "  # its folder, which models.toml did not say"
    return [
        "",
        "[[model]]",
        f"name = {toml.text(member.model)}",
        f"path = {toml.text(load.path or member.model)}{missing}",
        *([f'device = "{_name(unit)}"'] if pinned else []),
        *([f"tp = {unit.degree}"] if unit.degree > 1 else []),
        f"rate = {member.rate:.6g}",
        f'dtype = "{load.dtype}"',
        *([f'kv_dtype = "{load.shape.kv_dtype}"'] if load.shape.kv_dtype != "auto" else []),
        f"quota = {{ weight = {max(member.weight, 1e-6):.6f} }}",
        *([f"ttft_slo = {load.ttft_slo}"] if load.ttft_slo else []),
        *([f"tpot_slo = {load.tpot_slo}"] if load.tpot_slo else []),
    ]
