"""What adapters cost a step on this CPU: a batch of the base alone, of one adapter, and of four side by side.

A model of a real shape with random weights; each round times all batches in turn, so that ratios stand where
others use the machine. A step is the runner's that a worker has, without the daemon.

    python benchmarks/lora.py [--form qwen-0.5b] [--rank 16] [--rows 8] [--rounds 9] [--cores 1]
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]  # the tests' stand-in for the daemon

from provenance import machine, markdown_table  # noqa: E402
from random_model import FORMS, Form, serve  # noqa: E402
from support.direct_runner import DirectRunner  # noqa: E402

from muxd.device.cpu import Cpu, available_cores  # noqa: E402
from muxd.kernels import native  # noqa: E402
from muxd.models.spec import read_spec  # noqa: E402
from muxd.models.tensors import wanted  # noqa: E402

ADAPTERS = 4
_PROMPT, _CONTEXT, _STEPS = 256, 100, 4
_WHOSE: dict[str, Callable[[int], int]] = {
    "base": lambda row: 0,
    "one adapter": lambda row: 1,
    "four adapters": lambda row: 1 + row % ADAPTERS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--form", choices=sorted(FORMS), help="default: four layers of qwen-0.5b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cores", type=int, default=available_cores(), help="threads of a step")
    asked = parser.parse_args()
    form = FORMS[asked.form] if asked.form else Form(896, 4, 14, 2, 4864, 4096)
    print(f"{machine(Cpu()).line}; {asked.form or form}, bfloat16, rank {asked.rank} in every matrix\n")
    with tempfile.TemporaryDirectory() as folder:
        base = serve(Path(folder) / "base", form)
        adapters = [adapter(Path(folder) / str(i), base, asked.rank, i) for i in range(ADAPTERS)]
        for step in ("torch", *([] if native.missing() else ["native"])):
            runner = DirectRunner(
                base, "bfloat16", rows=2000, cores=asked.cores, capture=False, native=step == "native",
                adapters=adapters,
            )  # fmt: skip
            show(step, measured(runner, asked.rows, asked.rounds), asked.rows)


def adapter(folder: Path, base: Path, rank: int, seed: int) -> Path:
    """Random numbers for every matrix of every layer."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for tensor in wanted(read_spec(base)):
        for part in tensor.parts if tensor.name.startswith("layers.") else ():
            if len(shape := part.whole) == 2:
                name = f"base_model.model.{part.stored.removesuffix('.weight')}"
                tensors[f"{name}.lora_A.weight"] = torch.randn(rank, shape[1], generator=draw) / 64
                tensors[f"{name}.lora_B.weight"] = torch.randn(shape[0], rank, generator=draw) / 64
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": "all-linear"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


Seconds = dict[str, dict[str, list[float]]]  # what is timed -> whose batch -> of each round


def measured(runner: DirectRunner, rows: int, rounds: int) -> Seconds:
    draw = random.Random(0)
    found: Seconds = {what: {kind: [] for kind in _WHOSE} for what in ("step", "prompts")}
    sets = {kind: list(range(i * rows, (i + 1) * rows)) for i, kind in enumerate(_WHOSE)}
    for kind, seqs in sets.items():
        whose = {seq: _WHOSE[kind](row) for row, seq in enumerate(seqs)}
        prompts = [(seq, 0, draw.choices(range(3, 250), k=_CONTEXT), True) for seq in seqs]
        runner.prefill(prompts, adapters=whose)
    spare = 3 * rows
    for _ in range(rounds):
        for kind, seqs in sets.items():
            begun = time.perf_counter()
            for _ in range(_STEPS):
                runner.decode(seqs)
            found["step"][kind].append((time.perf_counter() - begun) / _STEPS)
        for kind, of in _WHOSE.items():
            prompts = [
                (spare + row, 0, draw.choices(range(3, 250), k=_PROMPT // ADAPTERS), True)
                for row in range(ADAPTERS)
            ]
            begun = time.perf_counter()
            runner.prefill(prompts, adapters={spare + row: of(row) for row in range(ADAPTERS)})
            found["prompts"][kind].append(time.perf_counter() - begun)
    return found


def show(step: str, found: Seconds, rows: int) -> None:
    """Medians, and the median of each round's own ratio."""
    names = {"step": f"step of {rows} rows", "prompts": f"{ADAPTERS} prompts, {_PROMPT} tokens"}
    lines = []
    for what, by_kind in found.items():
        pairs = list(zip(*by_kind.values(), strict=True))
        lines.append(
            [
                names[what],
                *(f"{1e3 * median(seconds):.1f}" for seconds in by_kind.values()),
                f"{median(one / base for base, one, _ in pairs):.2f}",
                f"{median(four / one for _, one, four in pairs):.2f}",
            ]
        )
    print(markdown_table([f"{step}, ms", *_WHOSE, "one / base", "four / one"], lines), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
