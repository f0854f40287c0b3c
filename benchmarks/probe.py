"""What the probes share: questions to a GPU whose answers choose between kernels, one JSON line an answer.

    python benchmarks/probe_<subject>.py --out F.jsonl [--dry] [--only QUESTION]...

A line is written when its answer is known, so that a probe that is cut short keeps what it found; a question
that fails is answered with its error and costs the others nothing. ``--dry``: on the CPU, tiny, with the
kernels in Triton's interpreter: everything runs, and no figure is written.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import Any

if "--dry" in sys.argv:  # chosen when kernels are imported: this module comes before any
    os.environ["TRITON_INTERPRET"] = "1"

import torch
from roofline_device import FULL, TINY, Plan, free, seconds_of
from torch import Tensor

from muxd.kernels.launch import Call

_WORDS = 300  # of an error
_COMPILERS = 12


class Probe:
    """Where answers go, and with what they are found. ``dtype``: the interpreter knows no bfloat16."""

    def __init__(self, out: Path, dry: bool):
        self._out, self.dry, self._question = out, dry, ""
        self.plan: Plan = TINY if dry else FULL
        self.device, self.dtype = self.plan.device, torch.float32 if dry else torch.bfloat16

    def ask(self, name: str, question: Callable[["Probe"], None]) -> None:
        self._question, begun = name, time.monotonic()
        self.attempt({}, lambda: question(self))
        free(self.plan)
        print(f"{name}: {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)

    def say(self, **answer: Any) -> None:
        line = json.dumps({"question": self._question, **answer})
        print(line, flush=True)
        with self._out.open("a") as file:
            file.write(f"{line}\n")

    def attempt(self, what: dict[str, Any], step: Callable[[], None]) -> None:
        """``step``, or an answer that says of ``what`` why there is none."""
        try:
            step()
        except Exception as error:
            self.say(**what, error=f"{type(error).__name__}: {str(error)[:_WORDS]}")

    def time(
        self,
        what: dict[str, Any],
        step: Callable[[int], object],
        cycles: int,
        nbytes: float = 0,
        flops: float = 0,
    ) -> None:
        """Answer with the time of ``step``, and bytes or operations over it; dry, only that it ran."""
        seconds = seconds_of(self.plan, step, cycles)
        if self.dry:
            return self.say(**what, ran=True)
        rates = {"tb_s": nbytes, "tflop_s": flops}
        told = {name: round(amount / seconds / 1e12, 3) for name, amount in rates.items() if amount}
        self.say(**what, us=round(1e6 * seconds, 2), **told)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, device=self.device).to(self.dtype)

    def numbers(self, values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)


def compile_all(calls: Sequence[Call]) -> None:
    """Side by side: each takes seconds. What does not compile says so when it is run."""
    import triton

    def ahead() -> None:
        with ThreadPoolExecutor(_COMPILERS) as threads, triton.AsyncCompileMode(threads):
            for call in calls:
                call.kernel.warmup(*call.arguments, grid=call.grid, **call.options)

    with suppress(Exception):
        copy_context().run(ahead)  # Triton's mode is a context variable, which an error would leave set


def off_by(found: Tensor, wanted: Tensor) -> float:
    """|found - wanted| / |wanted|: a variant that computes something else has no time worth knowing."""
    found, wanted = found.double(), wanted.double()
    return float((found - wanted).norm() / wanted.norm())


def main(
    questions: Mapping[str, Callable[[Probe], None]],
    about: str | None,
    dry: Mapping[str, Callable[[Probe], None]] | None = None,
) -> None:
    """The command line. ``dry``: what is asked in their place in a rehearsal, where that differs."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="F.jsonl")
    parser.add_argument("--dry", action="store_true")
    parser.add_argument("--only", action="append", choices=list(questions))
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        sys.exit(f"{sys.argv[0]}: no CUDA device (torch must be a CUDA build); --dry rehearses on the CPU")
    probe, asked = Probe(args.out, args.dry), dry if dry and args.dry else questions
    with torch.inference_mode():
        for name in args.only or questions:
            probe.ask(name, asked[name])
