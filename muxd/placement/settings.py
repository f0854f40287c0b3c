"""A plan as muxd.toml: one file for each host, and one for each unit over several devices.

A muxd serves all devices of its host, each model on one of them. A model over several is not served yet: such
a unit has a file of its own.

Shares and ``max_running`` are not written: muxd divides a device among who is there, and a batch that is
capped at its predicted mean has no room for bursts.
"""

from muxd import toml
from muxd.placement.problem import Member, Plan, Problem, Unit


def files(plan: Plan, problem: Problem) -> dict[str, str]:
    """File name -> text: ``host-0.toml``, and ``host-0-gpu-4.toml`` for a unit over GPUs 4 and more."""
    by_host: dict[int, list[Unit]] = {}
    found = {}
    for unit in sorted((unit for unit in plan.units if unit.members), key=lambda unit: unit.gpus):
        if unit.degree > 1:
            found[f"host-{unit.host}-gpu-{unit.gpus[0]}.toml"] = _text([unit], problem)
        else:
            by_host.setdefault(unit.host, []).append(unit)
    found.update({f"host-{host}.toml": _text(units, problem) for host, units in by_host.items()})
    return found


def _text(units: list[Unit], problem: Problem) -> str:
    several = len(units) > 1
    host, gpus = units[0].host, [gpu for unit in units for gpu in unit.gpus]
    lines = [f"# Host {host}, {problem.gpus.kind} {','.join(map(str, gpus))}", *_heading(units)]
    if several:
        for unit in units:
            lines += ["", "[[device]]", f'name = "cuda:{unit.gpus[0]}"', f'pool = "{unit.pool_bytes}"']
    else:
        lines += ["", "[pool]", f'bytes = "{units[0].pool_bytes}"']
    lines += ["", "[scheduler]", f"overbook = {problem.overbook}"]
    for unit in units:
        for member in unit.members:
            lines += _model(member, problem, f"cuda:{unit.gpus[0]}" if several else "")
    return "\n".join(lines) + "\n"


def _heading(units: list[Unit]) -> list[str]:
    unit = units[0]
    if len(units) > 1:
        return ["# Without a line `device` muxd may move the model where its work has gone."]
    devices = ",".join(map(str, unit.gpus))
    over = f"# Tensor parallel over {unit.degree}." if unit.degree > 1 else "# One device."
    return [f"# Start muxd with CUDA_VISIBLE_DEVICES={devices}", over]


def _model(member: Member, problem: Problem, device: str) -> list[str]:
    load = next(model for model in problem.models if model.name == member.model)
    missing = "" if load.path else "  # its folder, which models.toml did not say"
    return [
        "",
        "[[model]]",
        f"name = {toml.text(member.model)}",
        f"path = {toml.text(load.path or member.model)}{missing}",
        *([f'device = "{device}"'] if device else []),
        f"rate = {member.rate:.6g}",
        f'dtype = "{load.dtype}"',
        *([f'kv_dtype = "{load.shape.kv_dtype}"'] if load.shape.kv_dtype != "auto" else []),
        f"quota = {{ weight = {max(member.weight, 1e-6):.6f} }}",
        *([f"ttft_slo = {load.ttft_slo}"] if load.ttft_slo else []),
        *([f"tpot_slo = {load.tpot_slo}"] if load.tpot_slo else []),
    ]
