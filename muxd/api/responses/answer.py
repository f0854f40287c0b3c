"""The face of /v1/responses: the response object, and the events that build it."""

from collections.abc import Sequence
from typing import Any

import msgspec

from muxd.api.face import Tally, Whole
from muxd.api.logprobs import PromptScored, Scored
from muxd.api.responses.items import Output
from muxd.api.shapes import Answer
from muxd.api.sse import SSE
from muxd.text.pieces import Pieces
from muxd.text.sayings import Saying

_encode = msgspec.json.Encoder().encode


class Response:
    """Implements ``face.Face`` and, for its only choice, ``face.Frames``."""

    content_type = SSE
    comments = True

    def __init__(self, answer: Answer, pieces: Pieces, told: dict[str, Any]):
        self._answer, self._told = answer, told
        named = {
            function["name"]: tool["name"] for tool in told["tools"] for function in tool.get("tools", ())
        }
        self._output = Output(self._tell, pieces, named)
        self._number = 0
        self._frames: list[bytes] = []
        self._finish = ""

    def whole(self, choices: Sequence[Whole], tally: Tally) -> dict[str, Any]:
        (choice,) = choices
        self._finish = choice.finish
        self._output.add(choice.sayings, choice.scored)
        self._output.end(self._status)
        return self._object(self._status, tally)

    def frames(self, index: int) -> "Response":
        return self

    def opening(self, cached: int, prompt: Sequence[PromptScored]) -> bytes:
        self._tell("response.created", response=self._object("in_progress", None))
        self._tell("response.in_progress", response=self._object("in_progress", None))
        return self._taken()

    def piece(self, sayings: Sequence[Saying], scored: Sequence[Scored], token_ids: Sequence[int]) -> bytes:
        self._output.add(sayings, scored)
        return self._taken()

    def ending(self, finish: str, stopped_by: str | None) -> bytes:
        self._finish = finish
        self._output.end(self._status)
        return self._taken()

    def closing(self, tally: Tally) -> bytes:
        self._tell(f"response.{self._status}", response=self._object(self._status, tally))
        return self._taken()

    def failure(self, error: dict[str, Any]) -> bytes:
        said = error["error"]
        failed = self._object("failed", None)
        failed["error"] = {"code": said["code"] or "server_error", "message": said["message"]}
        self._tell("error", code=said["code"], message=said["message"], param=said["param"])
        self._tell("response.failed", response=failed)
        return self._taken()

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def _tell(self, type: str, **fields: Any) -> None:
        event = {"type": type, "sequence_number": self._number, **fields}
        self._number += 1
        self._frames.append(b"event: " + type.encode() + b"\ndata: " + _encode(event) + b"\n\n")

    def _taken(self) -> bytes:
        data, self._frames = b"".join(self._frames), []
        return data

    def _object(self, status: str, tally: Tally | None) -> dict[str, Any]:
        reason = {"reason": "max_output_tokens"} if status == "incomplete" else None
        used = {} if tally is None else {"usage": _usage(tally)}
        return used | {
            "id": self._answer.id,
            "object": "response",
            "created_at": self._answer.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": reason,
            "model": self._answer.model,
            "output": self._output.items if status != "in_progress" else [],
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            **self._told,
        }


def _usage(tally: Tally) -> dict[str, Any]:
    return {
        "input_tokens": tally.prompt,
        "input_tokens_details": {"cached_tokens": tally.cached},
        "output_tokens": tally.completion,
        "output_tokens_details": {"reasoning_tokens": tally.thinking},
        "total_tokens": tally.prompt + tally.completion,
    }
