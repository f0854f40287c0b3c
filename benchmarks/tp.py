"""A model's step on one device against the same over two (tensor parallel), and what its collectives take.

    python benchmarks/tp.py FOLDER [--ranks 2] [--rounds 3] [--dtype float32]

Decode steps of 1, 8 and 32 sequences and a prompt of 256 tokens, by torch's step: on one core; on as many
cores as there are ranks, in one process; and over that many processes of one core each, which is how workers
on a mesh "cpu:0+cpu:1" compute. Then the collectives of such a step by themselves, over tensors as large: two
sums a layer, one gathering of logits. Each round times each in turn; printed are the best round's
milliseconds, which other work on the machine disturbs least, and the median's.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks")]

from provenance import machine, markdown_table  # noqa: E402

from muxd.cost import probe  # noqa: E402
from muxd.device.cpu import Cpu, worker_env  # noqa: E402
from muxd.device.mesh import Mesh  # noqa: E402
from muxd.messages import Dtype, Setup  # noqa: E402
from muxd.models.spec import ModelSpec, read_spec  # noqa: E402

STREAMS, CONTEXT, PROMPT = (1, 8, 32), 128, 256
POOL = 320 << 20
Times = dict[str, list[float]]  # milliseconds by what was timed, one a round

PROBES: dict[str, probe.Probe] = {
    **{f"decode {batch}": probe.Decode(batch, CONTEXT, 100, least=6) for batch in STREAMS},
    f"prefill {PROMPT}": probe.Prefill(PROMPT, 0, 100, least=1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args()
    print(machine(Cpu()).line)
    count = args.ranks
    ways = {"one core": (1, 1), f"{count} cores": (1, count), f"{count} ranks": (count, 1)}
    found: dict[str, Times] = {way: {name: [] for name in PROBES} for way in (*ways, "their collectives")}
    for _ in range(args.rounds):
        for way, (ranks, cores) in ways.items():
            for name, milliseconds in timed(args.folder, args.dtype, ranks, cores).items():
                found[way][name].append(milliseconds)
        for name, milliseconds in collectives(read_spec(args.folder), args.ranks, args.dtype).items():
            found["their collectives"][name].append(milliseconds)
    rows = [[name, *(shown(times[name]) for times in found.values())] for name in PROBES]
    print(markdown_table(("ms, best (median)", *found), rows))


def shown(milliseconds: list[float]) -> str:
    return f"{min(milliseconds):.2f} ({statistics.median(milliseconds):.2f})"


def environment(cores: int) -> dict[str, str]:
    mesh = Mesh("cpu:0+cpu:1", [Cpu(1), Cpu(1)]).worker_env()
    return {**os.environ, **mesh, **worker_env(cores), "PYTHONPATH": str(ROOT)}


def timed(folder: Path, dtype: Dtype, ranks: int, cores: int) -> dict[str, float]:
    """Milliseconds of each probe, the least of its batches, by the first rank's clock."""
    command = [sys.executable, "-P", "-m", "muxd.worker.profile"]
    with tempfile.TemporaryDirectory(prefix="muxd-tp-") as scratch, ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    command, env=environment(cores), stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            for _ in range(ranks)
        ]
        for rank, process in enumerate(processes):
            setup = probe.Setup(
                str(folder), dtype, 8192, POOL, cores, step="torch", rank=rank, ranks=ranks,
                meeting=f"{scratch}/ranks",
            )  # fmt: skip
            say(process, setup)
        for process in processes:
            heard(process)
        found = {}
        for name, asked in PROBES.items():
            for process in processes:
                say(process, asked)
            first, *_ = [msgspec.json.decode(heard(process), type=probe.Measured) for process in processes]
            found[name] = 1e3 * min(first.seconds)
    return found


def say(process: "subprocess.Popen[bytes]", line: msgspec.Struct) -> None:
    assert process.stdin is not None
    process.stdin.write(probe.encode(line) + b"\n")
    process.stdin.flush()


def heard(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    if not (line := process.stdout.readline()):
        raise SystemExit("a process that measures has ended; it says why above")
    return line


def collectives(spec: ModelSpec, ranks: int, dtype: Dtype) -> dict[str, float]:
    """Milliseconds of a step's collectives alone."""
    lines = {name: getattr(asked, "batch", None) or PROMPT for name, asked in PROBES.items()}
    sampled = {name: getattr(asked, "batch", 1) for name, asked in PROBES.items()}
    told = json.dumps([(lines[name], sampled[name]) for name in PROBES])
    shape = [str(size) for size in (spec.layers, spec.hidden_size, spec.vocab_size)]
    with tempfile.TemporaryDirectory(prefix="muxd-tp-") as scratch:
        fixed = [str(ranks), dtype, f"{scratch}/ranks", told, *shape]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--alone", str(rank), *fixed],
                env=environment(1),
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(ranks)
        ]
        said = [process.communicate()[0] for process in processes]
    return dict(zip(PROBES, json.loads(said[0]), strict=True))


def alone(arguments: Sequence[str]) -> None:
    """One rank of ``collectives``."""
    import torch

    from muxd.worker.mapped import DTYPES
    from muxd.worker.ranks import Group, leave

    rank, ranks, dtype, meeting, told, *shape = arguments
    layers, hidden, vocab = map(int, shape)
    torch.set_num_threads(1)
    setup = Setup("", "", "", "float32", "", "cpu", 0, 0, 0, 0, [], 1, 0)
    group = Group(
        msgspec.structs.replace(setup, rank=int(rank), ranks=int(ranks), meeting=meeting), torch.device("cpu")
    )
    kind, found = next(value for name, value in DTYPES.items() if name == dtype), []
    for lines, sampled in json.loads(told):
        sums, part = (
            torch.ones(lines, hidden, dtype=kind),
            torch.ones(sampled, vocab // int(ranks), dtype=kind),
        )
        least = float("inf")
        for _ in range(12):
            begun = time.perf_counter()
            for _ in range(2 * layers):
                group.add(sums.zero_())
            group.gather(part)
            least = min(least, time.perf_counter() - begun)
        found.append(1e3 * least)
    leave()
    print(json.dumps(found))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        alone(sys.argv[2:])
    else:
        main()
