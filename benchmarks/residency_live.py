"""Twelve models on a CPU with memory for four, host memory for six: live, one workload under each policy.

    python benchmarks/residency_live.py [--seconds 60] [--rate 1.0] [--policies worth lru one]

Eight copies of the one demo model and four of the other, each with weights of its own. Power-law popularity
(alpha 1.5) whose favourites change half-way. Printed for each policy: requests that were answered, the part
with a first token within 2, 5 and 10 s, wakes, and what the audit says afterwards.
"""

import argparse
import asyncio
import tempfile
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from muxd.cli.local_daemon import local_daemon
from muxd.config import home
from muxd.sim.generate import Recipe, generate
from muxd.sim.records import Outcome, Records
from muxd.sim.replay import Replay
from muxd.sim.workload import Workload

POOL, MB = 256 << 20, 1 << 20
DEMO = {"smollm2-135m-instruct": 8, "gemma3-270m": 4}
LIMITS = (2.0, 5.0, 10.0)


def models() -> dict[str, Path]:
    return {f"{name}-{i}": home() / "models" / name for name, count in DEMO.items() for i in range(count)}


def weights(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def config(folder: Path, policy: str) -> Path:
    """Device memory for four of middling size, host memory for six."""
    served = models()
    mean = sum(map(weights, served.values())) // len(served)
    memory, host = POOL + 4 * mean + 64 * MB, 6 * mean
    text = [f'[[device]]\nname = "cpu:0"\npool = "{POOL}"\nmemory = "{memory}"\n',
            f'[residency]\npolicy = "{policy}"\nhost_memory = "{host}"\n']  # fmt: skip
    text += [f'[[model]]\nname = "{name}"\npath = "{path}"\n' for name, path in served.items()]
    path = folder / f"{policy}.toml"
    path.write_text("\n".join(text))
    return path


def workload(names: list[str], seconds: float, rate: float) -> Workload:
    """Two halves; in the second the quietest models are the favourites."""
    halves = [
        generate(Recipe(order, rate, seconds, 1.5, 1.0, "uniform:20-80,8-32", seed=seed))
        for seed, order in enumerate((names, names[::-1]))
    ]
    later = [replace(item, time=item.time + seconds) for item in halves[1].items]
    return Workload([*halves[0].items, *later], halves[0].header)


def row(policy: str, records: Records, wakes: int, audit: str) -> str:
    count = len(records.workload.items)
    served = records.outcome == Outcome.SERVED
    waited = np.where(served, records.first - records.sent, np.inf)
    within = " / ".join(f"{100 * (waited <= limit).mean():.0f}" for limit in LIMITS)
    cells = [policy, f"{served.sum()} of {count}", within, f"{np.median(waited):.2f}", str(wakes), audit]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each half")
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--policies", nargs="+", default=["worth", "lru", "one"])
    asked = parser.parse_args()
    work = workload(list(models()), asked.seconds, asked.rate)
    print("| policy | answered | TTFT within 2 / 5 / 10 s, % | median s | wakes | audit |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for policy in asked.policies:
            with local_daemon(config(Path(folder), policy)) as admin:
                url = admin.status().address
                records = asyncio.run(Replay(work, url, progress=lambda count: None).run())
                wakes = sum(event.kind == "woken" for event in admin.events())
                print(row(policy, records, wakes, admin.audit().fault or "clean"), flush=True)


if __name__ == "__main__":
    main()
