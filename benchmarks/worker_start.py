"""How long a worker takes to be there, and what ten idle ones weigh: this tree and others in one run.

    python benchmarks/worker_start.py [--against OTHER_CHECKOUT] [--demo] [--repeats 5] [--json FILE]

For every tree in turn, repeated: CPU and wall seconds of `muxctl load` of a tiny model (its weights are
nothing: a worker's start), of the restart after its worker was killed, and with --demo of a demo model
whose files are in the page cache; then the memory of ten idle workers (PSS: shared pages counted by parts).
CPU seconds are those of all the daemon's processes, which other work on the machine distorts least.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from provenance import machine, markdown_table
from random_model import Form, serve

from muxd.admin.client import AdminClient
from muxd.admin.schemas import LoadModel, UnloadModel
from muxd.cli.local_daemon import local_daemon
from muxd.config import home
from muxd.device.cpu import Cpu

TICK = os.sysconf("SC_CLK_TCK")
DEMO = "smollm2-135m-instruct"


def tree_of(pid: int) -> list[int]:
    """The process and all below it."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def cpu_seconds(pid: int) -> float:
    """Of the living processes and of those that were waited for."""
    total = 0
    for one in tree_of(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15]))
    return total / TICK


def pss(pid: int) -> int:
    """Bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no Pss of {pid}")


class Tree:
    """One checkout under measurement; its figures by name, a list each."""

    def __init__(self, path: Path, folder: Path, demo: Path | None):
        self.path, self._folder, self._demo = path, folder, demo
        self.figures: dict[str, list[float]] = {}

    def measure(self, workers: int) -> None:
        """One daemon's life."""
        names = [f"tiny{n}" for n in range(workers)]
        tables = "".join(f'[[model]]\nname = "{name}"\npath = "{self._folder}"\n' for name in names)
        if self._demo is not None:
            tables += f'[[model]]\nname = "demo"\npath = "{self._demo}"\n'
        config = self._folder.parent / "muxd.toml"
        config.write_text(f'[pool]\nbytes = "64M"\n{tables}')
        # Both come before an installed muxd: one in the daemon, the other in what it starts.
        os.chdir(self.path)
        os.environ["PYTHONPATH"] = str(self.path)
        began = time.monotonic()
        with local_daemon(config) as admin:
            pid = next(row.pid for row in admin.ps() if row.role == "daemon")
            self._note("start of the daemon, all models ready", cpu_seconds(pid), time.monotonic() - began)
            held = sum(pss(one) for one in tree_of(pid)[1:])
            self.figures.setdefault(f"memory of {workers} idle workers, MiB", []).append(held / 2**20)
            self._timed(pid, "load of a tiny model", lambda: load(admin, "tiny0"))
            self._timed(pid, "restart after a kill", lambda: restart(admin, "tiny1"))
            if self._demo is not None:
                self._timed(pid, "load of a demo model", lambda: load(admin, "demo"))

    def _timed(self, pid: int, name: str, act: Callable[[], Iterator[None]]) -> None:
        """Of what ``act`` does behind its first step, which makes ready for it."""
        steps = act()
        next(steps)
        cpu, wall = cpu_seconds(pid), time.monotonic()
        next(steps, None)
        self._note(name, cpu_seconds(pid) - cpu, time.monotonic() - wall)

    def _note(self, name: str, cpu: float, wall: float) -> None:
        self.figures.setdefault(f"{name}, CPU s", []).append(cpu)
        self.figures.setdefault(f"{name}, s", []).append(wall)


def load(admin: AdminClient, model: str) -> Iterator[None]:
    """Weights are read from the page cache: it was loaded before."""
    list(admin.unload(UnloadModel(model)))
    yield
    list(admin.load(LoadModel(model)))


def restart(admin: AdminClient, model: str) -> Iterator[None]:
    killed = next(row.pid for row in admin.ps() if row.role == "worker" and row.model == model)
    yield
    os.kill(killed, signal.SIGKILL)
    while True:
        row = next(row for row in admin.models() if row.name == model)
        if row.state == "ready" and row.pid != killed:
            return
        time.sleep(0.002)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--against", type=Path, action="append", default=[], help="another checkout")
    parser.add_argument("--demo", action="store_true", help=f"also load {DEMO}")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=10)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muxd-start-") as scratch:
        folder = Path(scratch, "tiny")
        serve(folder, Form(hidden=64, layers=2, heads=2, kv_heads=2, inner=128, vocab=320))
        demo = home() / "models" / DEMO if given.demo else None
        paths = [Path(__file__).resolve().parents[1], *(path.resolve() for path in given.against)]
        trees = [Tree(path, folder, demo) for path in paths]
        for _ in range(given.repeats):
            for tree in trees:
                tree.measure(given.workers)
    found = {str(tree.path): tree.figures for tree in trees}
    if given.json:
        given.json.write_text(json.dumps({"machine": machine(Cpu()).fields, "trees": found}, indent=1))
    rows = [
        [name, *(f"{statistics.median(tree.figures[name]):.3f}" for tree in trees)]
        for name in trees[0].figures
    ]
    print(machine(Cpu()).line, f"median of {given.repeats}", sep="\n")
    print(markdown_table(["", *("this tree", *(str(path) for path in paths[1:]))], rows))


if __name__ == "__main__":
    main()
