"""Adapters as models of their own: to clients and muxctl each looks like one, and all that it has, its
place, its state, its tokenizer, is its base's.

Nothing is remembered here: the base's entry has the settings, and what was read of the folders.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import structs

from muxd.config import ModelConfig
from muxd.engine.request import Request
from muxd.errors import ModelFolderError
from muxd.fleet.catalog import Entry, Shown
from muxd.messages import ITEM_BYTES, Pooling
from muxd.text.pieces import Pieces
from muxd.text.work import View


class Adapter:
    """One ``[[model]]`` with ``lora``, as ``muxd.api.serving.ServedModel`` has it; ``entry``: its base."""

    def __init__(self, config: ModelConfig, entry: Entry):
        self.config, self.entry = config, entry
        self.name = config.name

    def request(self, request: Request) -> Request:
        """One for this adapter, as its base's lane takes it. Raises ModelFolderError where it was refused."""
        opened = self.entry.opened
        number = opened.loras.numbers.get(self.name) if opened else None
        if number is None:
            raise ModelFolderError(f"The model {self.name!r} cannot be served: {self.detail}", param="model")
        return structs.replace(request, model=self.entry.name, adapter=number, asked=self.name)

    @property
    def base(self) -> str:
        return self.entry.name

    @property
    def error(self) -> str:
        """Why it cannot be served although its base can."""
        return self.entry.opened.loras.refused.get(self.name, "") if self.entry.opened else ""

    @property
    def state(self) -> Shown:
        return "failed" if self.error else self.entry.state

    @property
    def detail(self) -> str:
        return self.error or self.entry.detail

    @property
    def retry_after(self) -> float | None:
        return None if self.error else self.entry.retry_after

    @property
    def created(self) -> int:
        return self.entry.created

    @property
    def aliases(self) -> Sequence[str]:
        return self.config.aliases

    @property
    def view(self) -> View:
        own, of_base = self.config, self.entry.view
        return structs.replace(
            of_base,
            source=structs.replace(of_base.source, model=self.name),
            tool_parser=own.tool_parser,
            reasoning=own.reasoning,
            system_prompt=own.system_prompt,
            template_kwargs=own.chat_template_kwargs,
        )

    @property
    def thinks(self) -> bool:
        return self.entry.chat and self.entry.thinking(self.config) not in ("", "none")

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        return self.entry.sampling(self.config)

    @property
    def weight_bytes(self) -> int:
        """Its own."""
        opened = self.entry.opened
        lora = opened.loras.read.get(opened.loras.numbers.get(self.name, 0)) if opened else None
        return lora.numbers * ITEM_BYTES["float32"] if lora else 0

    @property
    def pieces(self) -> Pieces | None:
        return self.entry.pieces

    @property
    def max_context(self) -> int:
        return self.entry.max_context

    @property
    def vocab_size(self) -> int:
        return self.entry.vocab_size

    @property
    def max_queue(self) -> int:
        return self.entry.max_queue

    @property
    def chat(self) -> bool:
        return self.entry.chat

    @property
    def family(self) -> str:
        return self.entry.family

    @property
    def parameters(self) -> int:
        return self.entry.parameters

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def eos(self) -> frozenset[int]:
        return self.entry.eos

    @property
    def generates(self) -> bool:
        return self.entry.generates

    @property
    def pooling(self) -> Pooling:
        return self.entry.pooling


def served(entries: Mapping[str, Entry]) -> dict[str, Entry | Adapter]:
    """All that clients may ask for, by name: each model, and behind it its adapters. One that has a name
    which an unloaded model had goes before that."""
    found: dict[str, Entry | Adapter] = {}
    for name, entry in entries.items():
        found.setdefault(name, entry)
        for config in entry.adapters:
            found[config.name] = Adapter(config, entry)
    return found
