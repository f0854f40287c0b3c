"""A plan as muxd.toml. A muxd serves one unit, so a host with several units gets one file for each."""

import msgspec

from muxd.placement.problem import Plan, Problem, Unit, units


def files(plan: Plan, problem: Problem) -> dict[str, str]:
    """File name -> text: ``host-0.toml``, or ``host-0-gpu-4.toml`` where the host has more than one unit."""
    by_name = {model.name: model for model in problem.models}
    known = {(load.host, load.gpus) for load in units(plan)}
    several = {host for host, gpus in known if any(h == host and g != gpus for h, g in known)}
    found = {}
    for unit in plan.units:
        if unit.members:
            gpu = f"-gpu-{unit.gpus[0]}" if unit.host in several else ""
            paths = {member.model: by_name[member.model].path for member in unit.members}
            found[f"host-{unit.host}{gpu}.toml"] = _text(unit, problem, paths)
    return found


def _text(unit: Unit, problem: Problem, paths: dict[str, str]) -> str:
    devices = ",".join(map(str, unit.gpus))
    lines = [
        f"# Host {unit.host}, {problem.gpus.kind} {devices}: start muxd with CUDA_VISIBLE_DEVICES={devices}",
        f"# Tensor parallel over {unit.degree}." if unit.degree > 1 else "# One device.",
        "",
        "[pool]",
        f'bytes = "{unit.pool_bytes}"',
        "",
        "[scheduler]",
        f"overbook = {problem.overbook}",
    ]
    slos = {model.name: (model.ttft_slo, model.tpot_slo) for model in problem.models}
    for member in unit.members:
        ttft, tpot = slos[member.model]
        lines += [
            "",
            "[[model]]",
            f"name = {_string(member.model)}",
            f"path = {_string(paths[member.model] or member.model)}"
            + ("" if paths[member.model] else "  # its folder, which models.toml did not say"),
            f"share = {member.decode_share}",
            f"quota = {{ weight = {max(member.weight, 1e-6):.6f} }}",
            f"max_running = {max(1, member.batch)}",
            *([f"ttft_slo = {ttft}"] if ttft else []),
            *([f"tpot_slo = {tpot}"] if tpot else []),
        ]
    return "\n".join(lines) + "\n"


def _string(text: str) -> str:
    return msgspec.json.encode(text).decode()  # a JSON string is a TOML basic string
