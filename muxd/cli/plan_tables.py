"""What `muxctl plan` prints: who sits where, what is predicted, and what simulations say of it."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muxd.placement.planner import Method
    from muxd.placement.problem import Plan, Problem


def shown(plan: "Plan", problem: "Problem") -> str:
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
    text = render(headers, rows) + "\n\n" + "\n".join(f"{name:<9}{value}" for name, value in numbers.items())
    return f"{text}\n\n{_tried(plan)}" if plan.trials else text


def _tried(plan: "Plan") -> str:
    """One row a policy; the first is how muxd serves."""
    from muxd.cli.tables import render
    from muxd.sim.report import seconds

    def time(value: float | None) -> str:
        return "-" if value is None else seconds(value)

    rows = [
        [trial.policy, f"{100 * trial.on_time:.1f}%", f"{100 * trial.worst:.0f}%", time(trial.ttft_p50),
         time(trial.ttft_p99), time(trial.tpot_p50), time(trial.tpot_p99), f"{trial.per_second:.1f}"]
        for trial in plan.trials
    ]  # fmt: skip
    headers = ("SIMULATED", "ON TIME", "WORST MODEL", "TTFT P50", "TTFT P99", "TPOT P50", "TPOT P99",
               "REQUESTS/S")  # fmt: skip
    return render(headers, rows)


def compared(plans: "dict[Method, Plan]", failed: "dict[Method, str]", problem: "Problem") -> str:
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
