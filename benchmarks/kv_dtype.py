"""What K and V as float8 change in a real model: its greedy answers, and the time of a step on this CPU.

Answers to twenty questions, with K and V of the model's own type and as float8. "Alone": each goes on from
its own tokens; "same text": both are asked for the next token after every token of the first's answer. Beside
it the same comparison with the whole model in float32, as a measure of how near a tie its choices are.

    python benchmarks/kv_dtype.py FOLDER [--new 64] [--contexts 128 1024]
"""

import argparse
import random
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]  # the tests' stand-in for the daemon

from provenance import machine, markdown_table  # noqa: E402
from support.direct_runner import DirectRunner  # noqa: E402

from muxd.device.cpu import Cpu  # noqa: E402
from muxd.messages import Dtype, KvDtype, kv_item_bytes  # noqa: E402
from muxd.models.generation import read_generation  # noqa: E402
from muxd.models.spec import read_spec  # noqa: E402
from muxd.text.template import ChatTemplate  # noqa: E402
from muxd.text.tokenizer import Tokenizer  # noqa: E402

QUESTIONS = (
    "Name three rivers in Africa.", "Why is the sky blue?", "Write a haiku about autumn.",
    "What is the capital of Norway?", "Explain photosynthesis to a child.", "How do I boil an egg?",
    "Tell me a short story about a fox.", "What does a compiler do?", "List five kinds of fruit.",
    "Who wrote Hamlet?", "How far away is the moon?", "Describe the taste of coffee.",
    "What is twelve times eleven?", "Give advice for a job interview.", "What is a black hole?",
    "Translate 'good morning' into French.", "Why do cats purr?", "Write a birthday wish for a friend.",
    "What is the difference between a lake and a sea?", "How does a bicycle stay upright?",
)  # fmt: skip
KINDS: tuple[tuple[str, Dtype, KvDtype], ...] = (
    ("bfloat16, K and V float8", "bfloat16", "fp8"),
    ("all in float32", "float32", "auto"),
)
_BATCH, _STEPS = 8, 24  # of the timed steps


class Kind(NamedTuple):
    """``forced``: next tokens after the same text; ``scores``: log-probabilities of the first kind's."""

    answers: list[list[int]]
    forced: list[list[int]]
    scores: list[torch.Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024])
    args = parser.parse_args()
    prompts = asked(args.folder)
    torch.set_num_threads(1)
    print(machine(Cpu()).line)
    room = len(prompts), max(map(len, prompts)) + args.new
    own = measured(opened(args.folder, "bfloat16", "auto", *room), prompts, args.new)
    if own.forced != own.answers:
        raise SystemExit("the same text does not give the same tokens: nothing can be compared")
    rows = []
    for name, dtype, kind in KINDS:
        direct = opened(args.folder, dtype, kind, *room)
        other = measured(direct, prompts, args.new, own.answers)
        rows.append([name, *compared(own, other)])
    heads = ("against bfloat16", "next token, same text", "log-prob. of it, mean off by", "and lower by",
             "answers alone: same", "tokens before they differ, mean")  # fmt: skip
    print(markdown_table(heads, rows), flush=True)
    for context in args.contexts:
        plain, kept = steps(args.folder, context)
        times = f"{1e3 * plain:.1f} ms, float8 {1e3 * kept:.1f} ms"
        print(f"decode step, batch {_BATCH}, context {context}: {times}", flush=True)


def opened(
    folder: Path, dtype: Dtype, kind: KvDtype, sequences: int, tokens: int, *, capture: bool = True
) -> DirectRunner:
    """With room for so many sequences of so many tokens."""
    each = read_spec(folder).tokens_per_row(8192, kv_item_bytes(dtype, kind))
    rows = sequences * -(-tokens // each)
    return DirectRunner(folder, dtype, kv_dtype=kind, rows=rows, capture=capture)


def asked(folder: Path) -> list[list[int]]:
    """The questions as the model's template puts them."""
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate.load(folder, tokenizer.specials, None)
    if template is None:
        return [tokenizer.encode(question) for question in QUESTIONS]
    return [
        tokenizer.encode(template.render([{"role": "user", "content": text}]), add_special=False)
        for text in QUESTIONS
    ]


def measured(
    direct: DirectRunner, prompts: list[list[int]], new: int, given: list[list[int]] | None = None
) -> Kind:
    """Greedy; then along ``given``, else along its own answers."""
    ends = {*direct.spec.eos_ids, *read_generation(direct.folder).eos_ids}
    answers = [ended(answer, ends) for answer in direct.generate(prompts, new)]
    direct.logits.clear()
    given, seqs = given or answers, list(range(len(prompts)))
    direct.prefill([(seq, 0, prompt, True) for seq, prompt in enumerate(prompts)])
    for at in range(new - 1):
        for seq, answer in enumerate(given):
            if at < len(answer):  # not the token it has picked
                direct.runner._sequences[seq].history[-1] = answer[at]
        direct.decode(seqs)
    forced, scores = [], []
    for seq, answer in enumerate(given):
        logits = torch.stack([step[seq] for step in direct.logits[: len(answer)]]).float()
        forced.append(logits.argmax(-1).tolist())
        scores.append(logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])[:, 0])
    return Kind(answers, forced, scores)


def ended(answer: list[int], eos: set[int]) -> list[int]:
    """Until its end token, that counted."""
    stop = next((i + 1 for i, token in enumerate(answer) if token in eos), len(answer))
    return answer[:stop]


def compared(own: Kind, other: Kind) -> list[str]:
    pairs = list(zip(own.answers, other.answers, strict=True))
    count = sum(map(len, own.forced))
    same = sum(a == b for mine, theirs in zip(own.forced, other.forced, strict=True)
               for a, b in zip(mine, theirs, strict=True))  # fmt: skip
    before = [
        sum(1 for _ in takewhile(lambda ab: ab[0] == ab[1], zip(*pair, strict=False))) for pair in pairs
    ]
    off = torch.cat(own.scores) - torch.cat(other.scores)
    return [
        f"{same} of {count} ({100 * same / count:.1f} %)",
        f"{float(off.abs().mean()):.3f}",
        f"{float(off.mean()):+.3f}",
        f"{sum(mine == theirs for mine, theirs in pairs)} of {len(pairs)}",
        f"{sum(before) / len(before):.1f} of {count / len(pairs):.1f}",
    ]


def steps(folder: Path, context: int) -> tuple[float, float]:
    """Seconds of a decode step with K and V of the model's own type, and as float8: lower quartiles of steps
    that alternate."""
    draw, seqs = random.Random(0), list(range(_BATCH))
    prompts = [[draw.randrange(5, 40_000) for _ in range(context)] for _ in seqs]
    kinds: tuple[KvDtype, ...] = ("auto", "fp8")
    both = [opened(folder, "bfloat16", kind, _BATCH, context + _STEPS + 1, capture=False) for kind in kinds]
    for direct in both:
        for seq in seqs:
            direct.prefill([(seq, 0, prompts[seq], True)])
    took: list[list[float]] = [[], []]
    for _ in range(_STEPS):
        for direct, own in zip(both, took, strict=True):
            begun = time.perf_counter()
            direct.decode(seqs)
            own.append(time.perf_counter() - begun)
    plain, kept = (sorted(own[2:])[len(own) // 4] for own in took)
    return plain, kept


if __name__ == "__main__":
    main()
