"""What a neighbour costs: a quiet model beside a flood, and a chatty model beside long prompts.

    python benchmarks/isolation.py --cost cost.json [--model NAME] [--seconds 90] [--only simulated|live]

Two copies of one profiled model in a small pool. The quiet one's TTFT p99 beside a flood of three times the
device's capacity, against its own alone, with a guarantee and the whole device as its share, and without
either. Then the TPOT p99 of short chats beside prompts of thousands of tokens, against the bound of
muxd/engine/design.md.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

from sim_vs_live import capacity, live

from muxd.cli.simulate import cost_table, run
from muxd.cli.tables import render
from muxd.config import Config, home
from muxd.config_load import load
from muxd.cost.table import CostTable
from muxd.sim.generate import Recipe, generate
from muxd.sim.report import ModelReport, Report
from muxd.sim.workload import Workload

FILE = """
[pool]
bytes = "{pool}"

[scheduler]
prefill_tokens = {prefill}
drain_timeout = 0.2

[[model]]
name = "quiet"
path = "{path}"
share = {share}
quota = {{ min = "{least}", weight = {weight} }}

[[model]]
name = "flood"
path = "{path}"
share = 50
max_running = 32
max_queue = 16
"""
WITH = {"share": 100, "least": "25%", "weight": 1.0}
WITHOUT = {"share": 1, "least": "0", "weight": 0.001}
PREFILL = 128


def settings(folder: Path, model: Path, kind: dict[str, object], name: str, pool: str) -> tuple[Path, Config]:
    file = folder / f"{name}.toml"
    file.write_text(FILE.format(path=model, pool=pool, prefill=PREFILL, **kind))
    return file, load(file)


def both(first: Workload, second: Workload) -> Workload:
    return Workload(sorted(first.items + second.items, key=lambda item: item.time), {})


def of(report: Report, name: str) -> ModelReport:
    return next(model for model in report.models if model.model == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cost", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a folder of MUXD_HOME/models")
    parser.add_argument("--pool", default="96M")
    parser.add_argument("--seconds", type=float, default=90.0)
    parser.add_argument("--without", nargs="+", default=["mux", "fcfs"], help="policies for the second half")
    parser.add_argument("--only", choices=("simulated", "live"))
    args = parser.parse_args()
    model = home() / "models" / args.model
    kinds = [kind for kind in ("simulated", "live") if args.only in (None, kind)]
    with TemporaryDirectory() as scratch:
        measure(Path(scratch), model, args, kinds)


def measure(scratch: Path, model: Path, args: argparse.Namespace, kinds: list[str]) -> None:
    def go(
        kind: str, config: tuple[Path, Config], workload: Workload, cost: CostTable, policy: str
    ) -> Report:
        if kind == "simulated":
            return run(workload, cost, config[1], policy)
        return live(config[0], config[1], policy, workload, cost)

    guarded = settings(scratch, model, WITH, "with", args.pool)
    bare = settings(scratch, model, WITHOUT, "without", args.pool)
    cost = cost_table(args.cost, guarded[1], [])
    rate = capacity(cost, ["quiet"])
    quiet = generate(Recipe(["quiet"], 0.5, args.seconds, lengths="uniform:160-256,16-32", seed=1))
    flood = generate(Recipe(["flood"], 3 * rate, args.seconds, lengths="uniform:64-160,120-240", seed=2))
    rows = []
    for kind in kinds:
        for name, config, policy in [
            ("guaranteed", guarded, "mux"),
            *(("nothing", bare, policy) for policy in args.without),
        ]:
            alone = of(go(kind, config, quiet, cost, policy), "quiet").ttft
            beside = of(go(kind, config, both(quiet, flood), cost, policy), "quiet").ttft
            assert alone is not None
            cells = [f"{beside.p99:.3f}", f"{beside.p99 / alone.p99:.2f}x"] if beside else ["-", "-"]
            rows.append([kind, name, policy, f"{alone.p99:.3f}", *cells])
            print("  ".join(rows[-1]), flush=True)
    print(render(("KIND", "QUIET MODEL HAS", "POLICY", "TTFT99 ALONE", "BESIDE A FLOOD", "RATIO"), rows))
    chatty(args, kinds, go, settings(scratch, model, WITH | {"share": 50}, "chatty", args.pool), cost)


def chatty(args, kinds, go, config, cost: CostTable) -> None:  # type: ignore[no-untyped-def]
    chats = generate(Recipe(["quiet"], 1.0, args.seconds, lengths="uniform:16-32,60-100", seed=3))
    prompts = generate(Recipe(["flood"], 0.4, args.seconds, lengths="uniform:1000-1800,1-4", seed=4))
    rows = []
    for kind in kinds:
        alone = of(go(kind, config, chats, cost, "mux"), "quiet").tpot
        beside = of(go(kind, config, both(chats, prompts), cost, "mux"), "quiet").tpot
        assert alone is not None
        assert beside is not None
        prefill = cost.prefill("flood", PREFILL, 1800, 50)
        step = max(cost.decode("quiet", 16, 130, 50), cost.decode("flood", 4, 1800, 50))
        bound = config[1].scheduler.drain_timeout + prefill + 4 * step
        rows.append([kind, f"{alone.p99:.3f}", f"{beside.p99:.3f}", f"{bound:.3f}"])
    print(render(("KIND", "TPOT99 ALONE", "BESIDE LONG PROMPTS", "BOUND d + P + (M + 2) D"), rows))


if __name__ == "__main__":
    main()
