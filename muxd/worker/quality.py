"""``python -m muxd.worker.quality``: what a format of the weights costs in quality, on one text.

Each format and a reference, float32 by torch from the same files, read the same windows of the text through
the ``Runner`` that serves, a chunk at a time beside each other; what is compared are the log-probabilities
of which ``prompt_logprobs`` tells some. Reads one ``cost.probe.Compare`` from standard input, answers with
a ``Compared`` for each format when it is done, and before that with ``Counted`` for how far it is.
"""

import itertools
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from muxd.cost import probe
from muxd.errors import ModelFolderError, MuxdError
from muxd.kernels import native
from muxd.messages import Chunk, Dtype, NewRows, Prefill, Sampling, StepName, WeightsName, kv_item_bytes
from muxd.models.packing import packing_for
from muxd.models.spec import read_spec
from muxd.models.state_layout import state_rows
from muxd.models.weights import plan, stored_dtype
from muxd.text.tokenizer import Tokenizer
from muxd.worker.alone import Alone

TEXT = Path(__file__).with_name("quality.txt")  # prose, talk, a recipe, some code; nobody has it by heart
_WINDOW, _CHUNK = 512, 128  # tokens
_BLOCK = 8192
_SCORED = Sampling(temperature=0.0, prompt_logprobs=0)


class Variant:
    """One model in one format, and the log-probabilities it has just found."""

    def __init__(self, setup: probe.Setup):
        self.own = Alone(setup)
        self._seen: list[Tensor] = []
        self.own.runner.watch_scores(lambda logprobs: self._seen.append(logprobs.clone()))
        self._new, self._batch = self.own.new, itertools.count(1)

    def read(self, window: Sequence[int], start: int, stop: int) -> tuple[Tensor, list[float]]:
        """Of the tokens [start, stop) of a window, whose earlier ones were read before: [n, vocab], all
        log-probabilities at each token but a window's first; and [n], what each token itself had."""
        state = self.own.state_rows  # the first rows
        first, end = (state + -(-at // self.own.row_tokens) for at in (start, stop))
        rows = np.arange(first, end, dtype="<i4")
        tokens = np.array(window[start:stop], "<i4")
        chunk = Chunk(
            0, start, tokens.tobytes(), rows.tobytes(), False, _SCORED, len(window),
            state=np.arange(state, dtype="<i4").tobytes(),
        )  # fmt: skip
        new, self._new = self._new, NewRows()
        done = self.own.runner.prefill(Prefill(next(self._batch), 100, new, [chunk], []))
        found = torch.cat(self._seen)
        self._seen.clear()
        return found, [one.logprob for scores in done.prompt_scores for one in scores.scores]


class Sums:
    """What adds up of one format over the text."""

    def __init__(self) -> None:
        self.surprise, self.apart, self.same = list[float](), list[float](), 0

    def add(self, found: Tensor, own: list[float], wanted: Tensor) -> None:
        self.surprise += own
        self.apart += (wanted.exp() * (wanted - found)).sum(-1).tolist()
        self.same += int((found.argmax(-1) == wanted.argmax(-1)).sum())

    @property
    def perplexity(self) -> float:
        return math.exp(-sum(self.surprise) / len(self.surprise))


def compare(asked: probe.Compare) -> Iterator[probe.Counted | probe.Compared]:
    """Raises ModelFolderError for a folder that cannot be served."""
    folder = Path(asked.folder)
    spec = read_spec(folder)
    if spec.headless:
        raise ModelFolderError(f"{folder} only embeds texts: there are no probabilities to compare")
    tokens = Tokenizer.load(folder).encode(asked.text or TEXT.read_text(encoding="utf-8"))
    length = min(_WINDOW, spec.max_positions)
    windows = [tokens[i : i + length] for i in range(0, len(tokens), length) if len(tokens) - i > 1]
    dtype = stored_dtype(folder, gpu=False)
    forms = formats(folder, dtype)

    def reader(weights: WeightsName, kind: Dtype, step: StepName = "auto") -> Variant:
        rows = -(-length // spec.tokens_per_row(_BLOCK, kv_item_bytes(kind, "auto")))
        nbytes = (rows + state_rows(spec, _BLOCK)) * spec.blocks_per_row * _BLOCK
        return Variant(
            probe.Setup(asked.folder, kind, _BLOCK, nbytes, asked.cores, weights=weights, step=step)
        )

    reference, readers = reader("file", "float32", "torch"), [reader(one, dtype) for one in forms]
    sums = [Sums() for _ in (reference, *readers)]
    yield probe.Counted(0, len(tokens))
    for window in windows:
        for start in range(0, len(window), _CHUNK):
            stop = min(start + _CHUNK, len(window))
            wanted, own = reference.read(window, start, stop)
            sums[0].add(wanted, own, wanted)
            for one, total in zip(readers, sums[1:], strict=True):
                total.add(*one.read(window, start, stop), wanted)
            yield probe.Counted(stop - start, len(tokens))
    names: list[str] = ["float32", *forms]
    for name, one, total in zip(names, (reference, *readers), sums, strict=True):
        yield _compared(name, one.own, total)


def formats(folder: Path, dtype: Dtype) -> list[WeightsName]:
    """Values of ``weights`` under which the matrices lie differently. Raises ModelFolderError."""
    spec, found = read_spec(folder), dict[tuple[str, ...], WeightsName]()
    wanted: tuple[WeightsName, ...] = ("file",) if native.missing() else ("file", "int8", "int4")
    for weights in wanted:
        made = plan(folder, spec, dtype, packing=packing_for(weights, "auto", dtype, gpu=False))
        found.setdefault(tuple(entry.form for entry in made.tensors), weights)
    return list(found.values())


def _compared(name: str, own: Alone, total: Sums) -> probe.Compared:
    counts = Counter[str]()
    for entry in own.plan.tensors:
        if len(entry.shape) == 2:
            counts[entry.form or entry.dtype] += math.prod(entry.shape)
    apart = sorted(total.apart)
    return probe.Compared(
        weights=name,
        forms=[form for form, _ in counts.most_common()],
        nbytes=own.plan.bytes,
        tokens=len(apart),
        perplexity=total.perplexity,
        divergence=sum(apart) / len(apart),
        worst=apart[len(apart) * 99 // 100],
        same=total.same / len(apart),
    )


def main() -> int:
    try:
        for answer in compare(probe.decode_compare(sys.stdin.buffer.readline())):
            sys.stdout.buffer.write(probe.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
    except MuxdError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with suppress(BrokenPipeError):  # whoever asked is gone
        sys.exit(main())
