"""What the HTTP door needs from the engine, as protocols. ``muxd.daemon`` passes the real thing in.

Read by every file of this room; implemented by the engine's unit and, in tests, by a scripted double.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from muxd.admin.schemas import AdminService
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.fleet.gate import Taking
from muxd.messages import Pooling
from muxd.text.pieces import Pieces
from muxd.text.work import Result, View, Work

State = Literal[
    "loading", "ready", "restarting", "failed", "draining", "unloading", "unloaded", "asleep", "waking"
]


class ServedModel(Protocol):
    """One model as the door sees it. ``pieces`` is None until its tokenizer has been
    read."""

    @property
    def name(self) -> str: ...

    @property
    def base(self) -> str:
        """Of an adapter the model whose weights it changes; else ""."""

    @property
    def created(self) -> int:
        """Unix time, seconds."""

    @property
    def max_context(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table: every prompt id must lie below, or a worker would fault."""

    @property
    def pieces(self) -> Pieces | None: ...

    @property
    def view(self) -> View:
        """What a text process needs; of use once there are pieces."""

    @property
    def aliases(self) -> Sequence[str]:
        """Further names that it answers to."""

    @property
    def max_queue(self) -> int:
        """The most sequences that may wait; no request may have more."""

    @property
    def chat(self) -> bool:
        """It has a chat template."""

    @property
    def thinks(self) -> bool:
        """Its answers have a part before them that is told apart."""

    @property
    def family(self) -> str:
        """Its architecture's name; "" while it is not known."""

    @property
    def parameters(self) -> int: ...

    @property
    def weight_bytes(self) -> int: ...

    @property
    def dtype(self) -> str: ...

    @property
    def default_sampling(self) -> Mapping[str, Any]:
        """For requests that do not say: temperature, top_p, top_k, min_p and the penalties; may be empty."""

    @property
    def eos(self) -> frozenset[int]: ...

    @property
    def generates(self) -> bool:
        """It has a head to sample from."""

    @property
    def pooling(self) -> Pooling:
        """How it embeds texts; "" if it does not."""

    @property
    def state(self) -> str:
        """One of ``State``."""

    @property
    def detail(self) -> str:
        """Why, when failed or unloaded."""

    @property
    def retry_after(self) -> float | None:
        """When failed: seconds in which it is tried again at the latest; None: not by itself."""


class Serving(Protocol):
    """The engine, seen from the door."""

    @property
    def taking(self) -> Taking:
        """Requests, or why not."""

    def models(self) -> Mapping[str, ServedModel]:
        """By served name, in the order to show them."""

    def check_room(self, request: Request) -> None:
        """Raises QueueFull where ``submit`` would for a full queue; of ``request`` the model and the key are
        known, and no prompt yet."""

    def submit(self, request: Request) -> TokenStream:
        """Queue one sequence.

        Raises QueueFull, ModelNotReady, ModelUnloaded, ShuttingDown or ContextTooLong.
        """

    def ahead(self, request: Request) -> int | None:
        """How many requests for its model go first, 0 also while its prompt is computed; None after that."""

    @property
    def operator(self) -> AdminService:
        """What an operator sees and does."""


class Texts(Protocol):
    """Where long texts and chat templates are worked on."""

    async def run(
        self, work: Work, model: str, size: int, *, key: str | None = "", weight: float = 1.0
    ) -> Result:
        """``model``: whose process to prefer. ``size``: bytes. ``key``: who pays for it. Raises BadRequest,
        ContextTooLong, TextBusy ..."""
