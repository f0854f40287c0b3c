"""What the daemon and its text processes say to each other, as msgspec tagged structs over a socketpair.

A message is its length in four bytes and msgpack. There is one job at a time in a process, so an answer needs
no number. Token ids travel as little-endian int32 bytes.
"""

import struct
from array import array
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct

from muxd.text.token_names import TokenNames

LENGTH = struct.Struct("<I")
READY = b"r"  # a process's first byte
Kind = Literal[
    "chat",
    "text",
    "tokenize",
    "detokenize",
    "tokenizer_info",
    "responses",
    "messages",
    "count",
    "ollama_chat",
    "ollama_generate",
    "ollama_embed",
    "ollama_embeddings",
    "embed",
    "rerank",
    "score",
]
# The body, the chat template, the tokenizer, the form that an answer is held to.
Stage = Literal["read", "template", "tokens", "constraint"]


class Source(Struct, frozen=True):
    """Where a model's tokenizer and chat template are read from."""

    model: str
    folder: str
    template: str = ""  # the file that overrides the folder's
    stamp: str = ""  # of tokenizer.json when the daemon read it: ids of another one would be nonsense


class View(Struct, frozen=True):
    """What has to be known of a model to turn text into ids it may be given."""

    source: Source
    max_context: int
    vocab_size: int
    longest: int = 0  # bytes of the longest token; 0: not known
    tool_parser: str = "auto"  # as configured
    reasoning: str = "auto"
    system_prompt: str = ""
    template_kwargs: dict[str, Any] = {}

    @property
    def most_bytes(self) -> int:
        """No text longer than this fits the context; 0: not known."""
        return self.max_context * self.longest


class Check(Struct, frozen=True, tag="check"):
    """Read the model's tokenizer and compile its template. ``size``: tokens that the model has. ``aside``:
    behind everybody, since others stream."""

    source: Source
    size: int
    aside: bool = False


class Unloaded(Struct, frozen=True, tag="unloaded"):
    """These models serve no more: let go of their tokenizers and templates."""

    sources: list[Source]


class Prepare(Struct, frozen=True, tag="prepare"):
    """Decode the body of a request, check it, render and tokenise what it says."""

    kind: Kind
    data: bytes  # as it came over HTTP
    coding: str  # its Content-Encoding: "", "gzip" or "deflate"
    most: int  # bytes it may have when it is unpacked
    views: dict[str, View]  # the models it may be for
    default: str = ""  # of these, where it names none


Work = Check | Prepare | Unloaded


class Doing(Struct, frozen=True, tag="doing"):
    """The process has come to this part of its job: who is at fault if it never ends."""

    stage: Stage


class Checked(Struct, frozen=True, tag="checked"):
    """``eos``: as ``Tokenizer.eos``; ``longest``: bytes of the longest token."""

    names: TokenNames
    eos: list[int]
    chat: bool
    longest: int
    thinking: str = ""  # of the chat template, by ``muxd.text.thinking``


class Answered(Struct, frozen=True, tag="answered"):
    pass


class Prepared(Struct, frozen=True, tag="prepared"):
    """``asked``: ``api.schemas.Asked``. ``prompts``: ids; ``echoes``: the text of each, where asked for.
    ``ignored``: fields that nobody reads."""

    asked: Raw
    prompts: list[bytes]
    echoes: list[str]
    ignored: list[str] = []


class Answer(Struct, frozen=True, tag="answer"):
    """The JSON to send. ``ignored``: as in ``Prepared``."""

    model: str
    body: bytes
    ignored: list[str] = []


class Elsewhere(Struct, frozen=True, tag="elsewhere"):
    """The request is for a model that is not among the views; None: for none by name."""

    model: str | None


class Refusal(Struct, frozen=True, tag="refusal"):
    """A ``MuxdError`` by the name of its class."""

    kind: str
    message: str
    param: str | None
    code: str | None


class Defect(Struct, frozen=True, tag="defect"):
    """What nobody expected: the name of the exception and where, never its message, which may quote a
    prompt."""

    name: str
    stack: str


Result = Checked | Answered | Prepared | Answer | Elsewhere | Refusal | Defect
Reply = Doing | Result

_encode = msgspec.msgpack.Encoder().encode
decode_work = msgspec.msgpack.Decoder(Work).decode
decode_reply = msgspec.msgpack.Decoder(Reply).decode


def framed(message: Struct) -> bytes:
    body = _encode(message)
    return LENGTH.pack(len(body)) + body


def packed(ids: Sequence[int]) -> bytes:
    return array("i", ids).tobytes()


def unpacked(ids: bytes) -> list[int]:
    return array("i", ids).tolist()
