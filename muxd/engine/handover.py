"""One model, two workers: which command goes to which, and what a sequence takes along to be decoded.

Pure. The scheduler speaks of models; this turns its commands into those of a pair of workers that share pool
and weights. K and V move by row id: the decode worker is told a sequence's tokens and rows when it first
steps it, and nothing is copied.
"""

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
import numpy as np

from muxd.messages import Chunk, Decode, Joined, NewRows, Prefill, Sampling

Phase = Literal["prefill", "decode"]

OTHER: dict[Phase, Phase] = {"prefill": "decode", "decode": "prefill"}


class _Begun:
    """A sequence that the prefill worker has computed something of, and the decode worker nothing."""

    __slots__ = ("adapter", "prompt_tokens", "rows", "sampling", "state", "tokens")

    def __init__(self, chunk: Chunk):
        self.sampling: Sampling = chunk.sampling
        self.prompt_tokens, self.adapter = chunk.prompt_tokens, chunk.adapter
        self.tokens, self.state = chunk.known, chunk.state
        self.rows = b""


class Handover:
    """What each of the two workers has been told; made anew when they are."""

    def __init__(self) -> None:
        # A row is named to the worker that uses it first; the other hears of it with its next command.
        self._untold: dict[Phase, dict[int, bytes]] = {"prefill": {}, "decode": {}}
        self._known: dict[Phase, set[int]] = {"prefill": set(), "decode": set()}  # sequences it keeps
        self._leaving: dict[Phase, list[int]] = {"prefill": [], "decode": []}  # to be told to forget
        self._begun: dict[int, _Begun] = {}

    def place(self, command: Prefill | Decode) -> tuple[Phase, Prefill | Decode]:
        """The worker that computes the scheduler's next command, and the command as that worker needs it."""
        phase: Phase = "prefill" if isinstance(command, Prefill) else "decode"
        self._forget(command.forget)
        rows = self._told(phase, command.rows)
        if isinstance(command, Prefill):
            forget = self._left(phase)
            self._prefilled(command)
            return phase, msgspec.structs.replace(command, rows=rows, forget=forget)
        joined = self._join(seq for seq in command.seqs if seq not in self._known["decode"])
        forget = self._left(phase)
        return phase, msgspec.structs.replace(command, rows=rows, forget=forget, joined=joined)

    def completed(self, command: Prefill | Decode, tokens: Sequence[int]) -> None:
        """It is done: what a prefill has sampled is the decode worker's first token."""
        if isinstance(command, Decode):
            return
        sequences = [chunk.seq for chunk in command.chunks if chunk.last and not chunk.pooling]
        for seq, token in zip(sequences, tokens, strict=True):
            if (begun := self._begun.get(seq)) is not None:
                # Without a token it is not decoded: the scheduler is about to fail it.
                begun.tokens += max(token, 0).to_bytes(4, "little")

    # ---- inside -----------------------------------------------------------------------------------

    def _prefilled(self, command: Prefill) -> None:
        for chunk in command.chunks:
            if chunk.first or chunk.start == 0:
                self._begun[chunk.seq] = _Begun(chunk)
                self._known["prefill"].add(chunk.seq)
            begun = self._begun[chunk.seq]
            begun.tokens += chunk.tokens
            begun.rows += chunk.rows

    def _join(self, seqs: Iterable[int]) -> list[Joined]:
        joined = []
        for seq in seqs:
            begun = self._begun.pop(seq)
            told = begun.tokens, begun.rows, begun.sampling, begun.prompt_tokens, begun.adapter, begun.state
            joined.append(Joined(seq, *told))
            self._known["decode"].add(seq)
            self._known["prefill"].discard(seq)
            self._leaving["prefill"].append(seq)
        return joined

    def _forget(self, seqs: list[int]) -> None:
        for seq in seqs:
            self._begun.pop(seq, None)
            for phase, known in self._known.items():
                if seq in known:
                    known.discard(seq)
                    self._leaving[phase].append(seq)

    def _left(self, phase: Phase) -> list[int]:
        leaving, self._leaving[phase] = self._leaving[phase], []
        return leaving

    def _told(self, phase: Phase, new: NewRows) -> NewRows:
        """What the worker has to learn before this command: rows named to the other meanwhile, then these.

        Each row once: written twice in one call, either could win on a GPU.
        """
        ids = np.frombuffer(new.ids, dtype="<i4").tolist()
        width = len(new.blocks) // len(ids) if ids else 0
        own = {row: new.blocks[i * width : (i + 1) * width] for i, row in enumerate(ids)}
        self._untold[OTHER[phase]].update(own)
        untold, self._untold[phase] = self._untold[phase], {}
        if not untold:
            return new
        untold.update(own)
        return NewRows(np.array(list(untold), dtype="<i4").tobytes(), b"".join(untold.values()))
