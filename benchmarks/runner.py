"""What the paged pool costs: the worker's Runner against the bare loop, step by step in one process.

The two alternate every step and their lower quartiles compared, so that a noisy neighbour meets both.

    python benchmarks/runner.py FOLDER [--batch 32] [--context 100 300] [--steps 48] [--profile]
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]  # the tests' stand-in for the daemon

from bare_loop import BareLoop  # noqa: E402
from support.direct_runner import DirectRunner  # noqa: E402


def compare(
    loop: BareLoop, direct: DirectRunner, prompts: list[list[int]], steps: int
) -> tuple[float, float]:
    """Seconds of a decode step: (bare loop, Runner)."""
    seqs = list(range(len(prompts)))
    for seq, prompt in enumerate(prompts):
        direct.prefill([(seq, 0, prompt, True)])
    bare = loop.steps(prompts, steps + 4)
    next(bare)
    theirs, ours = [], []
    for _ in range(steps):
        theirs.append(_timed(lambda: next(bare)))
        ours.append(_timed(lambda: direct.decode(seqs)))
    for seq in seqs:
        direct.free(seq)
    return _quiet(theirs[3:]), _quiet(ours[3:])


def prefill(loop: BareLoop, direct: DirectRunner, prompt: list[int], times: int) -> tuple[float, float]:
    """Seconds to the first token of one prompt: (bare loop, Runner)."""
    theirs, ours = [], []
    for _ in range(times):
        theirs.append(_timed(lambda: next(loop.steps([prompt], 1))))
        ours.append(_timed(lambda: direct.prefill([(0, 0, prompt, True)])))
    direct.free(0)
    return _quiet(theirs), _quiet(ours)


def _quiet(seconds: list[float]) -> float:
    return sorted(seconds)[len(seconds) // 4]


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, nargs=2, default=[100, 300], help="range of prompt tokens")
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="operators of one decode step at each batch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    loop = BareLoop(args.folder)
    rows = max(args.batch) * ((args.context[1] + args.steps + 16) // 8 + 1)
    direct = DirectRunner(args.folder, "bfloat16", cores=args.threads, rows=rows, capture=False)
    draw = random.Random(0)
    for batch in args.batch:
        sizes = [draw.randint(*args.context) for _ in range(batch)]
        prompts = [[draw.randrange(5, 40_000) for _ in range(size)] for size in sizes]
        bare, ours = compare(loop, direct, prompts, args.steps)
        rates = f"bare {batch / bare:7.1f}, runner {batch / ours:7.1f} tokens/s"
        print(f"decode batch {batch:3d}: {rates}, ratio {bare / ours:.3f}", flush=True)
        if args.profile:
            _profile(direct, prompts)
    for size in (32, 128, 512):
        bare, ours = prefill(loop, direct, [draw.randrange(5, 40_000) for _ in range(size)], 5)
        rates = f"bare {size / bare:7.0f}, runner {size / ours:7.0f} tokens/s"
        print(f"prefill {size:4d} tokens: {rates}, ratio {bare / ours:.3f}", flush=True)


def _profile(direct: DirectRunner, prompts: list[list[int]]) -> None:
    seqs = list(range(len(prompts)))
    direct.prefill([(seq, 0, prompt, True) for seq, prompt in enumerate(prompts)])
    direct.decode(seqs)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        for _ in range(4):
            direct.decode(seqs)
    print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=24))
    for seq in seqs:
        direct.free(seq)


if __name__ == "__main__":
    main()
