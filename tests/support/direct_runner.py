"""A worker's Runner driven without processes: this plays the daemon, with deliberately scattered blocks."""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from muxd.device.base import HostWriter
from muxd.messages import (
    BatchDone,
    Chunk,
    Decode,
    Dtype,
    KvDtype,
    NewRows,
    Prefill,
    Sampling,
    Setup,
    StepName,
    WeightsName,
    kv_item_bytes,
)
from muxd.models.lora import read_lora, with_loras
from muxd.models.packing import packing_for
from muxd.models.spec import read_spec
from muxd.models.state_layout import state_rows
from muxd.models.weights import fill, plan
from muxd.worker.runner import Batch, Runner
from muxd.worker.step import Flight

GREEDY = Sampling(temperature=0.0)
_SEQUENCES = 16  # that find rows for their states beside those that are asked for


def int32(values: Sequence[int]) -> bytes:
    return np.asarray(values, dtype="<i4").tobytes()


class DirectRunner:
    """Owns a pool full of garbage (NaN in every type), hands out rows of random head blocks."""

    def __init__(  # noqa: PLR0913 - whatever a set-up message may say
        self,
        folder: Path,
        dtype: Dtype = "float32",
        *,
        kv_dtype: KvDtype = "auto",
        block_bytes: int = 8192,
        rows: int = 400,
        cores: int = 1,
        seed: int = 0,
        capture: bool = True,
        device: str = "cpu",
        paged: bool | None = None,
        max_running: int = 0,
        weights: WeightsName = "file",
        native: bool | None = None,
        adapters: Sequence[Path] = (),
    ):
        """``native``: the native step or torch; as a daemon would have it unless given. ``adapters``:
        folders, by number from 1 on."""
        self.folder, self.spec = folder, read_spec(folder)
        self.tokens = self.spec.tokens_per_row(block_bytes, kv_item_bytes(dtype, kv_dtype))
        step: StepName = "auto" if native is None else "native" if native else "torch"
        packing = None if paged else packing_for(weights, step, dtype, gpu=device != "cpu")
        layout = plan(folder, self.spec, dtype, packing=packing)
        loras = {number: read_lora(path, self.spec) for number, path in enumerate(adapters, 1)}
        layout = with_loras(layout, loras, self.spec)
        self.weights_bytes = layout.bytes
        region = np.zeros(layout.bytes + 64, dtype=np.uint8)
        region = region[-region.ctypes.data % 64 :]  # as a mapping lies
        fill(layout, HostWriter(region))
        self._state_rows = state_rows(self.spec, block_bytes)
        rows += _SEQUENCES * self._state_rows
        blocks = rows * self.spec.blocks_per_row
        pool = torch.full((blocks * block_bytes,), 0xFF, dtype=torch.uint8, device=device)
        self.pool = pool
        setup = Setup(
            worker="direct", model=folder.name, folder=str(folder), dtype=dtype, link="", device=device,
            pool_bytes=pool.numel(), block_bytes=block_bytes, max_rows=rows, weights_bytes=layout.bytes,
            tensors=layout.tensors, cores=cores, max_context=self.spec.max_positions,
            kv_dtype=kv_dtype, max_running=max_running, lora=layout.lora,
        )  # fmt: skip
        self.runner = Runner(setup, pool, torch.from_numpy(region).to(device), paged=paged)
        self.logits: list[torch.Tensor] = []
        if capture:
            self._capture()
        shuffle = random.Random(seed)
        self._blocks = shuffle.sample(range(blocks), blocks)
        self._free = shuffle.sample(range(rows), rows)
        self._told: set[int] = set()
        self._lengths: dict[int, int] = {}  # tokens with K and V
        self._rows: dict[int, list[int]] = {}
        self._states: dict[int, list[int]] = {}
        self._batch = itertools.count(1)

    def _capture(self) -> None:
        """Keep the float32 logits of every batch, as sampled from."""
        step = self.runner._step

        def kept(compute: Callable[..., Flight]) -> Callable[..., Flight]:
            def computed(*arguments: Any) -> Flight:
                flight = compute(*arguments)
                if len(flight.hidden):
                    self.logits.append(step.model.logits(flight.hidden))
                return flight

            return computed

        step.prefill, step.decode = kept(step.prefill), kept(step.decode)  # type: ignore[method-assign]

    def prefill(
        self,
        chunks: list[tuple[int, int, list[int], bool]],
        sampling: Sampling = GREEDY,
        *,
        prompt_tokens: int | None = None,
        forget: Sequence[int] = (),
        share: int = 100,
        adapters: Mapping[int, int] = MappingProxyType({}),
    ) -> BatchDone:
        """One batch of (sequence, start, tokens, last). ``adapters``: of sequences that begin, by number."""
        made, fresh = [], []
        for seq, start, tokens, last in chunks:
            if start == 0:
                self.free(seq)
            grown, state = self._grow(seq, start + len(tokens)), list[int]()
            if start == 0:
                state = self._states[seq] = [self._free.pop() for _ in range(self._state_rows)]
            fresh += grown + state
            generated_from = start + len(tokens) if prompt_tokens is None else prompt_tokens
            made.append(
                Chunk(
                    seq,
                    start,
                    int32(tokens),
                    int32(grown),
                    last,
                    sampling,
                    generated_from,
                    adapter=adapters.get(seq, 0),
                    state=int32(state),
                )
            )
            self._lengths[seq] = start + len(tokens)
        return self.runner.prefill(Prefill(next(self._batch), share, self._new(fresh), made, list(forget)))

    def decode(self, seqs: list[int], share: int = 100) -> list[int]:
        """One step; the tokens in the order of ``seqs``."""
        return self.decode_step(seqs, share).tokens

    def decode_step(self, seqs: list[int], share: int = 100) -> BatchDone:
        return self.begin(seqs, share).finish()

    def begin(self, seqs: list[int], share: int = 100, parts: int = 0) -> Batch:
        """A step that may begin before the one in front of it is finished; ``parts``: a mask of a GPU's."""
        grown = []
        for seq in seqs:
            self._lengths[seq] += 1
            grown += [(seq, row) for row in self._grow(seq, self._lengths[seq])]
        rows = self._new([row for _, row in grown])
        return self.runner.begin(Decode(next(self._batch), share, rows, seqs, grown, [], parts))

    def generate(self, prompts: list[list[int]], count: int) -> list[list[int]]:
        """Greedy, all prompts in one prefill batch, then decoded together."""
        seqs = list(range(len(prompts)))
        done = self.prefill([(seq, 0, prompt, True) for seq, prompt in enumerate(prompts)])
        out = [[token] for token in done.tokens]
        for _ in range(count - 1):
            for tokens, token in zip(out, self.decode(seqs), strict=True):
                tokens.append(token)
        return out

    def free(self, seq: int) -> None:
        """Rows go back; the next owner gets them with whatever is in them."""
        self._free += self._rows.pop(seq, []) + self._states.pop(seq, [])
        self._lengths.pop(seq, None)

    def blocks_in_use(self) -> list[int]:
        """The head blocks of all sequences."""
        per_row = self.spec.blocks_per_row
        rows = [row for held in (*self._rows.values(), *self._states.values()) for row in held]
        return [block for row in rows for block in self._blocks[row * per_row : (row + 1) * per_row]]

    def _grow(self, seq: int, tokens: int) -> list[int]:
        held = self._rows.setdefault(seq, [])
        grown = [self._free.pop() for _ in range(-(-tokens // self.tokens) - len(held))]
        held += grown
        return grown

    def _new(self, rows: list[int]) -> NewRows:
        """Rows are told once; their blocks never move."""
        fresh = [row for row in rows if row not in self._told]
        self._told.update(fresh)
        per_row = self.spec.blocks_per_row
        blocks = [block for row in fresh for block in self._blocks[row * per_row : (row + 1) * per_row]]
        return NewRows(int32(fresh), int32(blocks))
