"""Two random models of different size on one device: made and profiled, then under every policy.

    python benchmarks/colocated.py profiles --device cuda:0 --results DIR
    python benchmarks/colocated.py policies --device cuda:0 --results DIR [--seconds 60]

With ``--device cpu`` both are tiny, to see that everything works.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from random_model import FORMS, serve
from sim_vs_live import capacity

from muxd.cost.profile import load as load_profile
from muxd.cost.table import CostTable
from muxd.sim.generate import Recipe, generate
from muxd.sim.workload import write

_LOAD, _ALPHA = 0.7, 2.1  # of what the device can just serve; unevenness of the models' popularity
_MODELS = {"small": "qwen-0.5b", "large": "llama-1b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("step", choices=("profiles", "policies"))
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--results", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the workload")
    args = parser.parse_args()
    if args.step == "profiles":
        profiles(args.results, args.device)
    else:
        policies(args.results, args.device, args.seconds)


def profiles(results: Path, device: str) -> None:
    """Both models, their costs and a configuration that serves them."""
    cpu = device == "cpu"
    kind, text = "float32" if cpu else "bfloat16", ""
    for seed, (name, form) in enumerate(_MODELS.items()):
        folder = results / "models" / name
        serve(folder, FORMS["tiny" if cpu else form], seed)
        text += f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "{kind}"\nshare = 50\n'
        options = ["--dtype", kind, "--device", device, "--out", str(results / "cost.json")]
        _run("-m", "muxd.cli.muxd", "profile", str(folder), "--name", name, *options)
    head = f'[server]\ndevice = "{device}"\n[pool]\nbytes = "{"64M" if cpu else "8G"}"\n'
    (results / "muxd.toml").write_text(head + text)


def policies(results: Path, device: str, seconds: float) -> None:
    """mux, temporal and spatial, simulated and live."""
    cost, config, workload = (results / name for name in ("cost.json", "muxd.toml", "workload.jsonl"))
    if not config.exists():
        sys.exit(f"benchmarks/colocated.py: {config} is not there: the step profiles makes it")
    rate = _LOAD * capacity(CostTable(load_profile(cost)), list(_MODELS))
    write(workload, generate(Recipe(list(_MODELS), rate, seconds, _ALPHA, 1.0, "lognormal:100,60", seed=1)))
    files = ["--config", str(config), "--cost", str(cost), "--workload", str(workload), "--device", device]
    made = ["--json", str(results / "policies.json"), "--markdown", str(results / "policies.md")]
    _run(str(Path(__file__).with_name("policies.py")), *files, *made)


def _run(*arguments: str) -> None:
    """Ends this process with the other's exit code if that failed; it has said why."""
    done = subprocess.run([sys.executable, *arguments])
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
