"""One rank of a tensor-parallel group in a process of its own, which plays ``scenario`` on models in turn.

Run as a script by ``play``; what the models computed comes back as a file of logits and tokens.
"""

import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
from safetensors.torch import load_file, save_file
from torch import Tensor, stack, tensor

from muxd.device.cpu import worker_env
from muxd.models.cut import ALONE, Rank
from support.ledger_runner import LedgerRunner, Served

STEPS, FEW = 32, 6
_BLOCKS = 8000


class Part(msgspec.Struct):
    """What is played. ``paged``: K and V are read where they lie, as on a GPU."""

    folder: str
    adapters: list[str] = []
    paged: bool = False


def scenario(part: Part, rank: Rank = ALONE, meeting: str = "") -> list[Served]:
    """A prompt at once and 32 steps; in chunks and few; one that begins as it did, and few; one of each
    adapter, and few."""
    adapters = {"m": [Path(path) for path in part.adapters]}
    runner = LedgerRunner(
        {"m": Path(part.folder)}, _BLOCKS, rank=rank, meeting=meeting, adapters=adapters, paged=part.paged
    )
    words = random.Random(0).choices(range(3, 300), k=140)
    first = runner.start("m", words)
    answer(runner, first, STEPS)
    chunked = runner.start("m", words, chunk=37, cache=False)
    answer(runner, chunked, FEW)
    hit = runner.start("m", [*words[:130], *range(60, 75)])
    assert hit.shared
    answer(runner, hit, FEW)
    found = [first, chunked, hit]
    for adapter in range(1, len(part.adapters) + 1):
        adapted = runner.start("m", words[:50], chunk=37, cache=False, adapter=adapter)
        answer(runner, adapted, FEW)
        found.append(adapted)
    return found


def answer(runner: LedgerRunner, it: Served, steps: int) -> None:
    while len(it.answer) < steps:
        runner.step(it)


def play(parts: Mapping[str, Part], ranks: int, into: Path) -> list[dict[str, Tensor]]:
    """Of each rank, by model: logits [tokens of all sequences, vocab], under "NAME tokens" those tokens."""
    told = msgspec.json.encode(parts).decode()
    root = Path(__file__).parents[2]
    env = {**os.environ, **worker_env(1), "GLOO_SOCKET_IFNAME": "lo"}
    env["PYTHONPATH"] = os.pathsep.join([str(root), str(root / "tests")])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, told, str(number), str(ranks), str(into)], env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for number in range(ranks)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    codes = [process.returncode for process in processes]
    assert codes == [0] * ranks, "\n".join(said)
    return [load_file(into / f"{number}-of-{ranks}") for number in range(ranks)]


def results(name: str, served: list[Served]) -> dict[str, Tensor]:
    return {
        name: stack([logits for it in served for logits in it.logits]),
        f"{name} tokens": tensor([token for it in served for token in it.answer]),
    }


def main(told: str, number: str, ranks: str, into: str) -> None:
    from muxd.worker.ranks import leave

    found: dict[str, Tensor] = {}
    rank, parts = Rank(int(number), int(ranks)), msgspec.json.decode(told, type=dict[str, Part])
    for at, (name, part) in enumerate(parts.items()):
        found |= results(name, scenario(part, rank, f"{into}/meeting-{at}-of-{ranks}"))
        leave()
    save_file(found, f"{into}/{number}-of-{ranks}")


if __name__ == "__main__":
    main(*sys.argv[1:])
