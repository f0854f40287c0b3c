"""The face of OpenAI's two older endpoints: chat completions and completions.

All that is constant in a frame is encoded once per choice; a token costs the encoding of its text and one
join.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from muxd.api.face import Tally, Whole
from muxd.api.logprobs import PromptScored, Scored, chat_logprobs, echoed_logprobs, text_logprobs
from muxd.api.shapes import UNSCORED, Answer, Shown, usage_object, whole_answer
from muxd.api.sse import SSE
from muxd.text.pieces import Pieces
from muxd.text.sayings import Arguments, Call, Content, Saying, Thought

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class Chunks:
    """Implements ``face.Face``. ``echoes``: per choice, the text to put before the answer."""

    answer: Answer
    pieces: Pieces
    echoes: Sequence[str] = ()
    include_usage: bool = False
    token_ids: bool = False  # show them beside the text
    shown: Shown = UNSCORED

    content_type = SSE
    comments = True

    def whole(self, choices: Sequence[Whole], tally: Tally) -> dict[str, Any]:
        return whole_answer(
            self.answer, choices, tally, self.pieces, self.echoes, self.shown, token_ids=self.token_ids
        )

    def frames(self, index: int) -> "ChunkFrames":
        return ChunkFrames(self, index, self._echo(index))

    def closing(self, tally: Tally) -> bytes:
        if not self.include_usage:
            return DONE
        usage = _encode(usage_object(tally))
        return envelope(self.answer) + b'"choices":[],"usage":' + usage + b"}\n\n" + DONE

    def failure(self, error: dict[str, Any]) -> bytes:
        return b"data: " + _encode(error) + b"\n\n" + DONE

    def _echo(self, index: int) -> str:
        return self.echoes[index] if self.echoes else ""


class ChunkFrames:
    """The chunks of one choice. With ``include_usage`` every chunk but the last carries ``usage: null``."""

    def __init__(self, face: Chunks, index: int, echo: str = ""):
        self._pieces, self._ids = face.pieces, face.token_ids
        self._scores_echo = face.shown.echo
        self._chat = face.answer.kind == "chat"
        self._echo, self._offset = echo, len(echo)
        self._head = envelope(face.answer) + b'"choices":[{"index":%d,' % index
        self._tail = b'}],"usage":null}\n\n' if face.include_usage else b"}]}\n\n"
        self._before = self._head + (b'"delta":{"content":' if self._chat else b'"text":')
        self._after = b"}" if self._chat else b""
        self._plain = self._after + b',"logprobs":null,"finish_reason":null' + self._tail

    def opening(self, cached: int, prompt: Sequence[PromptScored]) -> bytes:
        """The role chunk of a chat, the echo of a completion, with its scores where they are wanted."""
        if self._chat:
            return self._delta({"role": "assistant", "content": ""})
        if self._scores_echo:
            scores = _encode(echoed_logprobs(prompt, self._pieces))
            after = b',"logprobs":' + scores + b',"finish_reason":null' + self._tail
            return self._before + _encode(self._echo) + after
        return self._before + _encode(self._echo) + self._plain if self._echo else b""

    def piece(self, sayings: Sequence[Saying], scored: Sequence[Scored], token_ids: Sequence[int]) -> bytes:
        """Scores and ids of the tokens, where asked for, are beside the first of what they say."""
        if not scored and not self._ids:
            return b"".join(map(self._said, sayings))
        first = sayings[0] if sayings else Content("")
        rest = sayings[1:]
        if not isinstance(first, Content):
            first, rest = Content(""), sayings
        return b"".join((self._with_scores(first.text, scored, token_ids), *map(self._said, rest)))

    def ending(self, finish: str, stopped_by: str | None) -> bytes:
        empty = b'"delta":{}' if self._chat else b'"text":""'
        return b"".join(
            (self._head, empty, b',"logprobs":null,"finish_reason":', _encode(finish), self._tail)
        )

    def _said(self, saying: Saying) -> bytes:
        match saying:
            case Content():
                return b"".join((self._before, _encode(saying.text), self._plain))
            case Thought():  # DeepSeek's name and OpenRouter's: clients look for either
                return self._delta({"reasoning_content": saying.text, "reasoning": saying.text})
            case Call():
                function = {"name": saying.name, "arguments": ""}
                call = {"index": saying.index, "id": saying.id, "type": "function", "function": function}
                return self._delta({"tool_calls": [call]})
            case Arguments():
                call = {"index": saying.index, "function": {"arguments": saying.text}}
                return self._delta({"tool_calls": [call]})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        named = b'"delta":' + _encode(delta)
        return self._head + named + b',"logprobs":null,"finish_reason":null' + self._tail

    def _with_scores(self, text: str, scored: Sequence[Scored], token_ids: Sequence[int]) -> bytes:
        scores: dict[str, Any] | None = None
        if scored and self._chat:
            scores = chat_logprobs(scored, self._pieces)
        elif scored:
            scores = text_logprobs(scored, self._pieces, self._offset)
        self._offset += len(text)
        ids = b',"token_ids":' + _encode(token_ids) if self._ids else b""
        logprobs = self._after + b',"logprobs":' + _encode(scores) + b',"finish_reason":null'
        return b"".join((self._before, _encode(text), logprobs, ids, self._tail))


def envelope(answer: Answer) -> bytes:
    """``data: {"id": ..., "model": ...,``: the start of every chunk."""
    name = "chat.completion.chunk" if answer.kind == "chat" else "text_completion"
    fields = {"id": answer.id, "object": name, "created": answer.created, "model": answer.model}
    return b"data: " + _encode(fields)[:-1] + b","
