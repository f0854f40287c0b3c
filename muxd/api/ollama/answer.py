"""The face of Ollama's API: objects, one a line where they are streamed."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from muxd.api.face import Called, Tally, Whole, called, joined
from muxd.api.logprobs import PromptScored, Scored, chat_logprobs
from muxd.api.times import zulu
from muxd.text.pieces import Pieces
from muxd.text.sayings import Content, Saying, Thought

_encode = msgspec.json.Encoder().encode


class OllamaAnswer:
    """Implements ``face.Face`` and, for its only choice, ``face.Frames``. A call is told as a whole: its
    arguments are an object here."""

    content_type = "application/x-ndjson"
    comments = False

    def __init__(self, model: str, pieces: Pieces, *, chat: bool):
        """``chat``: /api/chat, else /api/generate."""
        self._model, self._chat, self._pieces = model, chat, pieces
        self._calls: list[Saying] = []
        self._finish = ""

    def whole(self, choices: Sequence[Whole], tally: Tally) -> dict[str, Any]:
        (choice,) = choices
        self._finish = choice.finish
        text, thought = joined(choice.sayings, Content), joined(choice.sayings, Thought)
        said = self._object(text, thought, called(choice.sayings), choice.scored)
        return said | self._ended(tally)

    def frames(self, index: int) -> "OllamaAnswer":
        return self

    def opening(self, cached: int, prompt: Sequence[PromptScored]) -> bytes:
        return b""

    def piece(self, sayings: Sequence[Saying], scored: Sequence[Scored], token_ids: Sequence[int]) -> bytes:
        text, thought = joined(sayings, Content), joined(sayings, Thought)
        self._calls += [one for one in sayings if not isinstance(one, Content | Thought)]
        if not text and not thought and not scored:
            return b""
        return _line(self._object(text, thought, [], scored) | {"done": False})

    def ending(self, finish: str, stopped_by: str | None) -> bytes:
        self._finish = finish
        calls = called(self._calls)
        return _line(self._object("", "", calls, []) | {"done": False}) if calls else b""

    def closing(self, tally: Tally) -> bytes:
        return _line(self._object("", "", [], []) | self._ended(tally))

    def failure(self, error: dict[str, Any]) -> bytes:
        return _line(error)

    def _object(
        self, text: str, thought: str, calls: Sequence[Called], scored: Sequence[Scored]
    ) -> dict[str, Any]:
        made = zulu(datetime.now(UTC))
        said: dict[str, Any] = {"model": self._model, "created_at": made}
        more: dict[str, Any] = {"thinking": thought} if thought else {}
        if self._chat:
            if calls:
                more["tool_calls"] = [
                    {"id": one.id, "function": {"name": one.name, "arguments": _arguments(one.arguments)}}
                    for one in calls
                ]
            said["message"] = {"role": "assistant", "content": text, **more}
        else:
            said |= {"response": text, **more}
        if scored:
            said["logprobs"] = chat_logprobs(scored, self._pieces)["content"]
        return said

    def _ended(self, tally: Tally) -> dict[str, Any]:
        return {
            "done": True,
            "done_reason": "length" if self._finish == "length" else "stop",
            "total_duration": _nanoseconds(tally.waited + tally.spoke),
            "load_duration": 0,
            "prompt_eval_count": tally.prompt,
            "prompt_eval_duration": _nanoseconds(tally.waited),
            "eval_count": tally.completion,
            "eval_duration": _nanoseconds(tally.spoke),
        }


def _arguments(text: str) -> Any:
    """What was cut short is told as it is."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {"": text}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _line(value: Any) -> bytes:
    return _encode(value) + b"\n"
