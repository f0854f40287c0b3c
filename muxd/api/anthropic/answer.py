"""The face of /v1/messages: one message of blocks, and the events that build it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from muxd.api.face import Tally, Whole
from muxd.api.logprobs import PromptScored, Scored
from muxd.api.shapes import Answer
from muxd.api.sse import SSE
from muxd.text.sayings import Arguments, Call, Content, Saying, Thought

_encode = msgspec.json.Encoder().encode
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
_EMPTY: dict[str, dict[str, Any]] = {
    "text": {"type": "text", "text": "", "citations": None},
    "thinking": {"type": "thinking", "thinking": "", "signature": ""},
}
_UNENDED = {"stop_reason": None, "stop_sequence": None, "stop_details": None, "container": None}


class AnthropicAnswer:
    """Implements ``face.Face`` and, for its only choice, ``face.Frames``."""

    content_type = SSE
    comments = True

    def __init__(self, answer: Answer, prompt_tokens: int):
        self._answer, self._prompt = answer, prompt_tokens
        self._open = ""  # the kind of the block that goes on
        self._index = -1
        self._ended: dict[str, Any] = {}

    def whole(self, choices: Sequence[Whole], tally: Tally) -> dict[str, Any]:
        (choice,) = choices
        blocks: list[dict[str, Any]] = []
        for saying in choice.sayings:
            match saying:
                case Content() | Thought():
                    kind = "text" if isinstance(saying, Content) else "thinking"
                    if not blocks or blocks[-1]["type"] != kind:
                        blocks.append(_EMPTY[kind] | {kind: []})
                    blocks[-1][kind].append(saying.text)
                case Call():
                    blocks.append(_call(saying) | {"input": []})
                case Arguments():
                    blocks[-1]["input"].append(saying.text)
        for block in blocks:
            for kind in ("text", "thinking"):
                if kind in block:
                    block[kind] = "".join(block[kind])
            if "input" in block:
                block["input"] = _object("".join(block["input"]))
        return self._message(blocks, _usage(tally)) | _ending(choice.finish, choice.stopped_by)

    def frames(self, index: int) -> "AnthropicAnswer":
        return self

    def opening(self, cached: int, prompt: Sequence[PromptScored]) -> bytes:
        usage = _usage(Tally(self._prompt, cached, 0))
        return _event("message_start", message=self._message([], usage)) + _event("ping")

    def piece(self, sayings: Sequence[Saying], scored: Sequence[Scored], token_ids: Sequence[int]) -> bytes:
        return b"".join(map(self._said, sayings))

    def ending(self, finish: str, stopped_by: str | None) -> bytes:
        self._ended = _ending(finish, stopped_by)
        return self._stop()

    def closing(self, tally: Tally) -> bytes:
        usage = _usage(tally)
        return _event("message_delta", delta=self._ended, usage=usage) + _event("message_stop")

    def failure(self, error: dict[str, Any]) -> bytes:
        return b"event: error\ndata: " + _encode(error) + b"\n\n"

    def _said(self, saying: Saying) -> bytes:
        match saying:
            case Content():
                delta = {"type": "text_delta", "text": saying.text}
                return self._turn_to("text") + self._delta(delta)
            case Thought():
                delta = {"type": "thinking_delta", "thinking": saying.text}
                return self._turn_to("thinking") + self._delta(delta)
            case Call():
                return self._start("tool_use", _call(saying) | {"input": {}})
            case Arguments():
                return self._delta({"type": "input_json_delta", "partial_json": saying.text})

    def _turn_to(self, kind: str) -> bytes:
        return b"" if self._open == kind else self._start(kind, _EMPTY[kind])

    def _start(self, kind: str, block: dict[str, Any]) -> bytes:
        stopped = self._stop()
        self._open = kind
        self._index += 1
        return stopped + _event("content_block_start", index=self._index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)

    def _stop(self) -> bytes:
        if not self._open:
            return b""
        self._open = ""
        return _event("content_block_stop", index=self._index)

    def _message(self, blocks: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._answer.id,
            "type": "message",
            "role": "assistant",
            "model": self._answer.model,
            "content": blocks,
            **_UNENDED,
            "usage": usage | {"cache_creation": None, "inference_geo": None, "service_tier": "standard"},
        }


def _ending(finish: str, stopped_by: str | None) -> dict[str, Any]:
    reason = "stop_sequence" if stopped_by is not None and finish == "stop" else _REASONS[finish]
    sequence = stopped_by if reason == "stop_sequence" else None
    return _UNENDED | {"stop_reason": reason, "stop_sequence": sequence}


def _call(call: Call) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "caller": {"type": "direct"}}


def _usage(tally: Tally) -> dict[str, Any]:
    return {
        "input_tokens": tally.prompt - tally.cached,  # here without those that were found computed
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": tally.cached,
        "output_tokens": tally.completion,
        "output_tokens_details": {"thinking_tokens": tally.thinking},
        "server_tool_use": None,
    }


def _object(text: str) -> Any:
    """Arguments that were cut short are none."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return {}


def _event(name: str, **fields: Any) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + _encode({"type": name, **fields}) + b"\n\n"
