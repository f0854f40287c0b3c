"""The CPU's step, torch against native by the format of weights, and llama.cpp on the same GGUF file.

Every round times each in turn: decode steps of 1, 8 and 32 sequences behind prompts of 100 tokens, and a long
prompt in chunks of 512. Printed are the best round's figures, which other work on the machine disturbs least,
and the median's, and at what part of the memory's rate one sequence reads the weights (an array that no cache
holds is added up in the same rounds). Then, by teacher forcing along the greedy answers of float32, how often
each picks another token, and by how much at most float32 prefers its own.

    python benchmarks/cpu_step.py FOLDER --gguf FILE.gguf [--peer LLAMA_CPP/build/bin] [--rounds 5]

FOLDER has bfloat16 weights; FILE is what `muxctl import` made it of, imported once more with its blocks kept.
"""

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]  # the tests' stand-in for the daemon

from kv_dtype import asked  # noqa: E402
from provenance import machine, markdown_table  # noqa: E402
from support.direct_runner import DirectRunner  # noqa: E402

from muxd.device.cpu import Cpu  # noqa: E402
from muxd.importer.convert import import_gguf  # noqa: E402
from muxd.importer.progress import Silent  # noqa: E402
from muxd.messages import Dtype, WeightsName  # noqa: E402

STREAMS, PROMPT, STEPS, CHUNK = (1, 8, 32), 100, 6, 512
ROWS = 1400  # of 32 sequences, or of one long prompt
READ = 512 << 20  # bytes
MEMORY = "memory"


class Kind(NamedTuple):
    """``blocks``: of the GGUF file's own; else of the folder with bfloat16 weights."""

    name: str
    native: bool
    weights: WeightsName = "file"
    blocks: bool = False


KINDS = (
    Kind("torch, bfloat16", False),
    Kind("native, bfloat16", True),
    Kind("native, int8", True, "int8"),
    Kind("native, the file's blocks", True, "file", True),
)
Times = dict[str, list[float]]  # seconds by what was timed, one a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--peer", type=Path, help="where llama-batched-bench and llama-bench are")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, default=2000)
    parser.add_argument("--new", type=int, default=32, help="tokens of each answer that is compared")
    args = parser.parse_args()
    cores = Cpu().cores
    print(machine(Cpu()).line)
    with tempfile.TemporaryDirectory(prefix="muxd-cpu-step-") as scratch:
        kept = Path(scratch) / "kept"
        import_gguf(args.gguf, kept, progress=Silent(), weights="file")
        folders = {kind: kept if kind.blocks else args.folder for kind in KINDS}
        found, sizes = timed(folders, args, cores)
        rate = READ / min(found.pop(MEMORY)["read"])
        print(f"memory is read at {rate / 1e9:.1f} GB/s")
        table = [*speeds(found, args.prompt), share_of_memory(found, sizes, rate)]
        print(markdown_table(("", *found), table), flush=True)
        print(markdown_table(MISSES, misses(args.folder, folders, args.new, cores)), flush=True)


# ---- speed ---------------------------------------------------------------------------------------------


def timed(
    folders: dict[Kind, Path], args: argparse.Namespace, cores: int
) -> tuple[dict[str, Times], dict[str, int]]:
    """Times and bytes of weights by the name of each."""
    runners = {
        kind.name: DirectRunner(
            folder, "bfloat16", rows=ROWS, cores=cores, capture=False, native=kind.native,
            weights=kind.weights,
        )
        for kind, folder in folders.items()
    }  # fmt: skip
    for direct in runners.values():
        direct.runner.warm_up()
    found: dict[str, Times] = {name: {} for name in runners}
    rounds: dict[str, Callable[[], Times]] = {
        name: lambda direct=direct: one_round(direct, args.prompt)  # type: ignore[misc]
        for name, direct in runners.items()
    }
    if args.peer:
        name = f"llama.cpp, {args.gguf.name}"
        found[name], rounds[name] = {}, lambda: peer_round(args.peer, args.gguf, args.prompt, cores)
    found[MEMORY], rounds[MEMORY] = {}, partial(read_round, torch.ones(READ // 8, dtype=torch.int64), cores)
    for _ in range(args.rounds):
        for name, run in rounds.items():
            for what, seconds in run().items():
                found[name].setdefault(what, []).extend(seconds)
    return found, {name: direct.weights_bytes for name, direct in runners.items()}


def read_round(memory: torch.Tensor, cores: int) -> Times:
    torch.set_num_threads(cores)
    found: Times = {"read": []}
    for _ in range(STEPS):
        begun = time.perf_counter()
        memory.sum()
        found["read"].append(time.perf_counter() - begun)
    return found


def one_round(direct: DirectRunner, prompt: int) -> Times:
    found: Times = {}
    draw = random.Random(prompt)
    for streams in STREAMS:
        seqs = list(range(streams))
        for seq in seqs:
            direct.prefill([(seq, 0, draw.choices(range(5, 5000), k=PROMPT), True)])
        direct.decode(seqs)
        steps = []
        for _ in range(STEPS):
            begun = time.perf_counter()
            direct.decode(seqs)
            steps.append(time.perf_counter() - begun)
        found[f"{streams}"] = [min(steps)]
        for seq in seqs:
            direct.free(seq)
    tokens = draw.choices(range(5, 5000), k=prompt)
    begun = time.perf_counter()
    for start in range(0, prompt, CHUNK):
        direct.prefill([(0, start, tokens[start : start + CHUNK], start + CHUNK >= prompt)])
    found["prompt"] = [time.perf_counter() - begun]
    direct.free(0)
    return found


def peer_round(where: Path, gguf: Path, prompt: int, cores: int) -> Times:
    """llama.cpp's own benchmarks, each prompt and sequence of the same length."""
    common = ["-m", str(gguf), "-t", str(cores)]
    batched = [
        str(where / "llama-batched-bench"), *common, "-tb", str(cores), "-c", "8192", "-b", "2048", "-ub",
        "512", "-npp", str(PROMPT), "-ntg", str(4 * STEPS), "-npl", ",".join(map(str, STREAMS)),
        "--output-format", "jsonl",
    ]  # fmt: skip
    lines = [json.loads(line) for line in output(batched).splitlines() if line.startswith("{")]
    found = {f"{line['pl']}": [line["pl"] / line["speed_tg"]] for line in lines if "speed_tg" in line}
    single = [str(where / "llama-bench"), *common, "-p", str(prompt), "-n", "0", "-r", "1", "-o", "json"]
    found["prompt"] = [prompt / json.loads(output(single))[0]["avg_ts"]]
    return found


def output(command: list[str]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def speeds(found: dict[str, Times], prompt: int) -> list[list[str]]:
    """Best round (median round) of each, in tokens a second."""
    rows = []
    for what, tokens in (*((f"{n}", n) for n in STREAMS), ("prompt", prompt)):
        label = f"prompt of {prompt}: tokens/s" if what == "prompt" else f"{what} streams: tokens/s"
        cells = [
            f"{tokens / min(times[what]):,.0f} ({tokens / statistics.median(times[what]):,.0f})"
            for times in found.values()
        ]
        rows.append([label, *cells])
    return rows


def share_of_memory(found: dict[str, Times], sizes: dict[str, int], rate: float) -> list[str]:
    """A step of one sequence reads every weight once, where the embedding is the head, too."""
    shares = (
        f"{sizes[name] / min(times['1']) / rate:.0%}" if name in sizes else ""
        for name, times in found.items()
    )
    return ["1 stream: of the memory's rate", *shares]


# ---- what is picked ------------------------------------------------------------------------------------

MISSES = ("against float32, same text", "other tokens", "float32 prefers its own by at most", "MB of weights")


def misses(folder: Path, folders: dict[Kind, Path], new: int, cores: int) -> list[list[str]]:
    prompts = asked(folder)
    exact = opened(folder, "float32", Kind("", True), cores)
    answers = exact.generate(prompts, new)
    logits = torch.stack(exact.logits, 1)  # [prompts, new, vocab]
    del exact
    rows = []
    for kind, own in folders.items():
        direct = opened(own, "bfloat16", kind, cores)
        picked = torch.tensor(forced(direct, prompts, answers))
        best = logits.max(-1).values
        gaps = best - logits.gather(-1, picked[..., None])[..., 0]
        missed = gaps > 0
        size = direct.weights_bytes / 1e6
        count = f"{int(missed.sum())} of {missed.numel()}"
        rows.append([kind.name, count, f"{float(gaps.max()):.3f}", f"{size:.0f}"])
    return rows


def opened(folder: Path, dtype: Dtype, kind: Kind, cores: int) -> DirectRunner:
    return DirectRunner(
        folder, dtype, rows=ROWS, cores=cores, native=kind.native, weights=kind.weights,
        capture=dtype == "float32",
    )  # fmt: skip


def forced(direct: DirectRunner, prompts: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """The next token after each token of the answers."""
    seqs = list(range(len(prompts)))
    done = direct.prefill([(seq, 0, prompt, True) for seq, prompt in enumerate(prompts)])
    found = [[token] for token in done.tokens]
    for at in range(len(answers[0]) - 1):
        for seq, answer in enumerate(answers):
            direct.runner._sequences[seq].history[-1] = answer[at]  # not the token it has picked
        for seq, token in zip(seqs, direct.decode(seqs), strict=True):
            found[seq].append(token)
    return found


if __name__ == "__main__":
    main()
