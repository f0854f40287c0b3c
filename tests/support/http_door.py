"""A scripted engine behind the real HTTP application: real TokenStreams, a real tokenizer."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import aiohttp

from muxd.admin.schemas import UnloadModel
from muxd.api.prepare import prepare
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import QueueFull
from muxd.fleet.gate import Taking
from muxd.fleet.steps import Step
from muxd.messages import Pooling, TokenLogprob
from muxd.text.library import TextModel
from muxd.text.pieces import Pieces
from muxd.text.template import ChatTemplate
from muxd.text.tokenizer import Tokenizer
from muxd.text.work import Prepare, Result, Source, View, Work

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if shout %}LOUD {% endif %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Connect = Callable[[bytes], Awaitable[Connection]]
PostRaw = Callable[[dict[str, Any]], Awaitable[Connection]]


@dataclass
class Model:
    """Implements ``ServedModel``."""

    name: str
    tokenizer: Tokenizer | None
    template: ChatTemplate | None = None
    created: int = 1700000000
    max_context: int = 512
    vocab_size: int = 0
    default_sampling: dict[str, Any] = field(default_factory=dict)
    eos: frozenset[int] = frozenset()
    generates: bool = True
    pooling: Pooling = ""
    state: str = "ready"
    detail: str = ""
    retry_after: float | None = None
    tool_parser: str = "auto"
    reasoning: str = "auto"
    aliases: list[str] = field(default_factory=list)
    system_prompt: str = ""
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    max_queue: int = 4096
    family: str = "LlamaForCausalLM"
    parameters: int = 135_000_000
    weight_bytes: int = 270_000_000
    dtype: str = "bfloat16"
    base: str = ""

    @property
    def pieces(self) -> Pieces | None:
        return self.tokenizer.pieces if self.tokenizer is not None else None

    @property
    def chat(self) -> bool:
        return self.template is not None

    @property
    def thinks(self) -> bool:
        return self.template is not None and self.template.thinking != ""

    @property
    def view(self) -> View:
        return View(
            Source(self.name, ""),
            self.max_context,
            self.vocab_size,
            longest=20,
            tool_parser=self.tool_parser,
            reasoning=self.reasoning,
            system_prompt=self.system_prompt,
            template_kwargs=self.template_kwargs,
        )


Play = Callable[[Request, TokenStream], Any]


class Scripted:
    """Implements ``Serving`` and ``Texts``: plays ``play`` for every submitted request and counts what is
    closed."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.taking: Taking = "ok"
        self.requests: list[Request] = []
        self.texts: list[tuple[str, int]] = []
        self.streams: list[TokenStream] = []
        self.places: list[int | None] = []  # what ``ahead`` says, one after the other
        self.full: QueueFull | None = None  # what ``check_room`` raises
        self.closed: list[bool] = []  # ``served`` of each close that reached the engine
        self.closing = asyncio.Event()
        self.submitted = asyncio.Event()
        self.text_came, self.text_goes_on = asyncio.Event(), asyncio.Event()
        self.text_goes_on.set()
        self.play: Play = self.say("hello world")
        self.operator: Any = self  # of what an operator may do it can unload
        self._tasks: set[asyncio.Future[Any]] = set()
        template = ChatTemplate(TEMPLATE, tokenizer.specials, "test")
        size, eos = tokenizer.vocab_size, tokenizer.eos
        chat = Model("org/chat-model", tokenizer, template, vocab_size=size, eos=eos)
        self.by_name: dict[str, Model] = {
            chat.name: chat,
            "base": Model("base", tokenizer, vocab_size=size, eos=eos),
        }

    def models(self) -> dict[str, Model]:
        return self.by_name

    def ahead(self, request: Request) -> int | None:
        return self.places.pop(0) if self.places else None

    async def unload(self, wanted: UnloadModel) -> AsyncIterator[Step]:
        self.by_name[wanted.model].state = "unloaded"
        yield Step(wanted.model, "unloaded")

    def open(self, view: View) -> TextModel:
        model = self.by_name[view.source.model]
        assert model.tokenizer is not None
        return TextModel(view, model.tokenizer, model.template)

    async def run(
        self, work: Work, model: str, size: int, *, key: str | None = "", weight: float = 1.0
    ) -> Result:
        """What a text process does (tests/text has real ones), done here."""
        assert isinstance(work, Prepare)
        self.texts.append((model, size))
        self.text_came.set()
        await self.text_goes_on.wait()
        return prepare(work, self, lambda stage: None)

    def check_room(self, request: Request) -> None:
        assert request.prompt == []
        if self.full is not None:
            raise self.full

    def submit(self, request: Request) -> TokenStream:
        stream = TokenStream(self._close)
        made = self.play(request, stream)
        if asyncio.iscoroutine(made):
            task = asyncio.ensure_future(made)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.requests.append(request)
        self.streams.append(stream)
        self.submitted.set()
        return stream

    def _close(self, served: bool) -> None:
        self.closed.append(served)
        self.closing.set()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special=False)

    def say(
        self,
        text: str,
        finish: Literal["stop", "length"] = "stop",
        each_wakeup: int = 1,
        logprobs: bool = False,
    ) -> Play:
        """A script that puts ``text`` token by token, ``each_wakeup`` tokens at a time, then ends."""

        async def play(request: Request, stream: TokenStream) -> None:
            for index, token in enumerate(self.ids(text)):
                if index % each_wakeup == 0:
                    await asyncio.sleep(0)
                top = [(token, -0.5), (self.ids("x")[0], -1.5)][: request.sampling.logprobs]
                stream.put(token, TokenLogprob(-0.5, top) if logprobs else None)
            stream.end(finish)

        return play

    def hold(self, text: str = "hello") -> Play:
        """A script that puts ``text`` and then never ends."""

        def play(_: Request, stream: TokenStream) -> None:
            for token in self.ids(text):
                stream.put(token)

        return play


@dataclass
class Door:
    """A running application and two clients to it."""

    url: str
    http: aiohttp.ClientSession
    openai: Any  # an AsyncOpenAI; its overloads know no body given as **fields

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any, Any]:
        """Status, decoded JSON, headers."""
        async with self.http.post(path, json=body, headers=headers) as answer:
            return answer.status, await answer.json(), answer.headers
