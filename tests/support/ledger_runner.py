"""Real Runners of several models on one pool, rows from a real Ledger: a daemon's part in forty lines.

Prefixes are matched, registered and faded as the engine does it; every logit the models computed is kept.
What comes free by fading becomes NaN at once, as another model could leave it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from muxd.device.base import HostWriter
from muxd.messages import Chunk, Decode, KvDtype, NewRows, Prefill, Sampling, Setup, kv_item_bytes
from muxd.models.cut import ALONE, Rank, cut_spec
from muxd.models.lora import read_lora, with_loras
from muxd.models.packing import packing_for
from muxd.models.spec import read_spec
from muxd.models.state_layout import state_rows
from muxd.models.weights import fill, plan
from muxd.pool.ledger import Ledger
from muxd.pool.prefix import Chain
from muxd.pool.windowed import Windowed, row_ids
from muxd.worker.runner import Runner
from muxd.worker.step import Flight
from support.direct_runner import GREEDY, int32


@dataclass(eq=False)
class Served:
    """One sequence as the daemon knows it."""

    id: int
    model: str
    chain: Chain
    tokens: list[int]
    prompt_tokens: int
    rows: list[int] = field(default_factory=list)
    state: list[int] = field(default_factory=list)  # rows of it, where the model keeps one
    shared: int = 0  # rows found in the cache
    faded: int = 0  # rows that its windows have passed
    named: bool = True  # its rows may be found by others
    computed: int = 0
    logits: list[torch.Tensor] = field(default_factory=list)  # float32 [vocab] of every sampled token

    @property
    def answer(self) -> list[int]:
        return self.tokens[self.prompt_tokens :]


class LedgerRunner:
    def __init__(
        self,
        folders: dict[str, Path],
        blocks: int,
        block_bytes: int = 4096,
        *,
        device: str = "cpu",
        paged: bool | None = None,
        native: bool = False,
        kv_dtypes: dict[str, KvDtype] | None = None,
        rank: Rank = ALONE,
        meeting: str = "",
        adapters: Mapping[str, Sequence[Path]] = MappingProxyType({}),
    ):
        """``native``: the native step, else torch. ``kv_dtypes``: of models whose K and V are not of their
        own type, float32. ``rank``: this process's, of a group that meets by the file ``meeting``.
        ``adapters``: folders of each model's, by number from 1 on."""
        self._rank, self._meeting, self._adapters = rank, meeting, adapters
        self._device, self._paged, self._kv_dtypes = device, paged, kv_dtypes or {}
        self._packing = packing_for("file", "native", "float32", gpu=False) if native else None
        self.pool = torch.full((blocks * block_bytes,), 0xFF, dtype=torch.uint8, device=device)  # NaN
        self.ledger, self._block_bytes = Ledger(blocks), block_bytes
        self.runners: dict[str, Runner] = {}
        self._made: dict[str, tuple[Setup, torch.Tensor]] = {}
        self.row_tokens: dict[str, int] = {}
        self.state_rows: dict[str, int] = {}
        self.windowed: dict[str, Windowed | None] = {}
        self._logits: list[torch.Tensor] = []
        self._sequences = 0
        self._forget: dict[str, list[int]] = {model: [] for model in folders}
        for model, folder in folders.items():
            self._add(model, folder, blocks, block_bytes)

    def _add(self, model: str, folder: Path, blocks: int, block_bytes: int) -> None:
        whole, kind = read_spec(folder), self._kv_dtypes.get(model, "auto")
        spec, rank = cut_spec(whole, self._rank.ranks), self._rank
        bare = plan(folder, whole, "float32", packing=self._packing, rank=rank)
        loras = {n: read_lora(path, whole) for n, path in enumerate(self._adapters.get(model, ()), 1)}
        layout = with_loras(bare, loras, whole, rank)
        weights = np.zeros(layout.bytes + 64, dtype=np.uint8)
        weights = weights[-weights.ctypes.data % 64 :]  # as a mapping lies
        fill(layout, HostWriter(weights))
        self.windowed[model] = Windowed.of(spec.kept_windows, spec.layer_blocks)
        rows = row_ids(blocks, spec.blocks_per_row, self.windowed[model])
        self.row_tokens[model] = spec.tokens_per_row(block_bytes, kv_item_bytes("float32", kind))
        self.state_rows[model] = state_rows(spec, block_bytes)
        self.ledger.add_model(
            model, spec.blocks_per_row, rows, row_tokens=self.row_tokens[model],
            state_rows=self.state_rows[model], windowed=self.windowed[model],
        )  # fmt: skip
        setup = Setup(
            worker="ledger", model=model, folder=str(folder), dtype="float32", link="", device=self._device,
            pool_bytes=self.pool.numel(), block_bytes=block_bytes, max_rows=rows,
            weights_bytes=layout.bytes, tensors=layout.tensors, cores=1, max_context=spec.max_positions,
            kv_dtype=kind, rank=rank.number, ranks=rank.ranks, meeting=self._meeting,
            lora=layout.lora,
        )  # fmt: skip
        held = torch.from_numpy(weights).to(self._device)
        self._made[model] = setup, held
        runner = self.runners[model] = self.another(model)
        step = runner._step

        def kept(compute: Callable[..., Flight]) -> Callable[..., Flight]:
            def computed(*arguments: Any) -> Flight:
                flight = compute(*arguments)
                if len(flight.hidden):
                    self._logits.append(step.model.logits(flight.hidden))
                return flight

            return computed

        step.prefill, step.decode = kept(step.prefill), kept(step.decode)  # type: ignore[method-assign]

    def another(self, model: str) -> Runner:
        """One more over the same pool and weights, told nothing yet."""
        return Runner(self._made[model][0], self.pool, self._made[model][1], paged=self._paged)

    def start(
        self,
        model: str,
        tokens: list[int],
        *,
        chunk: int = 1000,
        prompt_tokens: int | None = None,
        sampling: Sampling = GREEDY,
        cache: bool = True,
        adapter: int = 0,
        named: bool = True,
    ) -> Served:
        """Admit and prefill, ``chunk`` tokens at a time; the first token is sampled. ``cache``: it may find
        rows; ``named``: others may find its."""
        size = self.row_tokens[model]
        it = Served(self._sequences, model, Chain(model, size), list(tokens), prompt_tokens or len(tokens))
        it.named = named
        self._sequences += 1
        states = self.state_rows[model]
        keys = it.chain.match(it.tokens) if cache and not states else []
        count = -(-(len(tokens) + 1) // size)
        grant = self.ledger.admit(model, keys, count + states)
        assert grant is not None, "the test's pool is too small"
        rows = [*grant.shared.tolist(), *grant.rows.ids.tolist()]
        it.rows, it.state = rows[:count], rows[count:]
        it.shared = grant.shared.size
        it.computed = it.shared * size
        it.faded = self._passed(it)
        new = NewRows(int32(grant.rows.ids.tolist()), int32(grant.rows.blocks.ravel().tolist()))
        for start in range(it.computed, len(tokens), chunk):
            first = start == it.shared * size
            part = tokens[start : start + chunk]
            told, known = (int32(it.rows), int32(tokens[:start])) if first else (b"", b"")
            last = start + len(part) == len(tokens)
            made = Chunk(
                it.id, start, int32(part), told, last, sampling, it.prompt_tokens, first, known,
                adapter=adapter, state=int32(it.state) if first else b"",
            )  # fmt: skip
            forget, self._forget[model] = self._forget[model], []
            command = Prefill(0, 100, new if first else NewRows(), [made], forget)
            found = self.runners[model].prefill(command).tokens
            self._computed(it, start + len(part))
        self._took(it, found[0])
        return it

    def step(self, it: Served) -> int:
        """Decode one token."""
        grown, new = [], NewRows()
        if it.computed == len(it.rows) * self.row_tokens[it.model]:
            rows = self.ledger.take(it.model, 1)
            assert rows is not None, "the test's pool is too small"
            it.rows += rows.ids.tolist()
            grown = [(it.id, it.rows[-1])]
            new = NewRows(int32(rows.ids.tolist()), int32(rows.blocks.ravel().tolist()))
        token = self.runners[it.model].decode(Decode(0, 100, new, [it.id], grown, [])).tokens[0]
        self._computed(it, it.computed + 1)
        self._took(it, token)
        return token

    def finish(self, it: Served) -> None:
        self.ledger.release(it.model, np.array(it.rows + it.state, np.int32), it.faded)
        self._forget[it.model].append(it.id)
        self.ledger.audit()

    def _computed(self, it: Served, computed: int) -> None:
        """Rows that are full now may be shared from now on, those that windows have passed fade."""
        start = it.computed // self.row_tokens[it.model]
        it.computed = computed
        if it.named and not it.state:
            self.ledger.register(it.model, it.rows, it.chain.keys(it.tokens, computed), start)
        if (passed := self._passed(it)) > it.faded:
            before = self.ledger.free_blocks
            self.ledger.fade(it.model, np.array(it.rows[it.faded : passed], np.int32))
            it.faded = passed
            freed = self.ledger._stack[before : self.ledger.free_blocks]
            self.pool.view(-1, self._block_bytes)[torch.from_numpy(freed.astype(np.int64))] = 0xFF

    def _passed(self, it: Served) -> int:
        windowed = self.windowed[it.model]
        return windowed.passed(it.computed, self.row_tokens[it.model]) if windowed else 0

    def _took(self, it: Served, token: int) -> None:
        it.tokens.append(token)
        it.logits.append(self._logits[-1][0])
