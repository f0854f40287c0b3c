"""What the CPU's sampler takes for one row, by how its request samples and by how large the vocabulary is.

    python benchmarks/draws.py [--vocab 49152 262144] [--rounds 5]

CPU time of one thread, milliseconds a row, the median of the rounds; logits are random (normal, deviation
3, two peaks), bfloat16. The first line is the row's maximum alone, which all others have in them.
"""

import argparse
import statistics
import time

import torch

from muxd.messages import Sampling
from muxd.worker.sampler import sample
from muxd.worker.sequence import Sequence

ROWS, HISTORY = 8, 200
KINDS = {
    "greedy": Sampling(temperature=0.0),
    "greedy, repetition penalty 1.1": Sampling(temperature=0.0, repetition_penalty=1.1),
    "temperature 1": Sampling(temperature=1.0),
    "temperature 1, top-k 64, top-p 0.95": Sampling(temperature=1.0, top_k=64, top_p=0.95),
    "temperature 0.7, top-p 0.9": Sampling(temperature=0.7, top_p=0.9),
    "temperature 0.2, top-p 0.9, repetition penalty 1.1": Sampling(
        temperature=0.2, top_p=0.9, repetition_penalty=1.1
    ),
    "temperature 1, min-p 0.05": Sampling(temperature=1.0, min_p=0.05),
}


def milliseconds(logits: torch.Tensor, sampling: Sampling, rounds: int) -> float:
    """Of a row."""
    history = torch.randint(0, logits.shape[1], (ROWS, HISTORY)).tolist()
    sequences = [Sequence(sampling, HISTORY // 2, [], one) for one in history]
    sample(logits, sequences)
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        sample(logits, sequences)
        found.append(1e3 * (time.thread_time() - began) / ROWS)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, nargs="+", default=[49152, 262144])
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    for vocab in given.vocab:
        logits = 3 * torch.randn(ROWS, vocab)
        logits[:, 17] += 12
        logits[:, 99] += 11
        for kind, sampling in KINDS.items():
            print(f"{vocab:>7}  {milliseconds(logits.bfloat16(), sampling, given.rounds):.3f} ms  {kind}")


if __name__ == "__main__":
    main()
