"""The output of a response, item by item, with the events that tell of it. Pure."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any

from muxd.api.logprobs import Scored, chat_logprobs
from muxd.text.pieces import Pieces
from muxd.text.sayings import Arguments, Call, Content, Saying, Thought

Tell = Callable[..., None]  # the type of an event, and its fields


class Output:
    """``items`` are those that have begun, the last one perhaps not complete. ``tell`` hears every event.
    ``namespaces``: of functions that have one, by name."""

    def __init__(self, tell: Tell, pieces: Pieces, namespaces: dict[str, str]):
        self.items: list[dict[str, Any]] = []
        self._tell, self._pieces, self._namespaces = tell, pieces, namespaces
        self._open = ""  # the kind of the last item, while it goes on
        self._parts: list[str] = []  # of its text

    def add(self, sayings: Sequence[Saying], scored: Sequence[Scored]) -> None:
        for saying in sayings:
            match saying:
                case Content():
                    self._more_text(saying.text, scored)
                    scored = ()
                case Thought():
                    self._turn_to("reasoning")
                    self._text_delta("response.reasoning_text.delta", saying.text)
                case Call():
                    self._call(saying)
                case Arguments():
                    self._parts.append(saying.text)
                    self._tell("response.function_call_arguments.delta", **self._where(), delta=saying.text)

    def end(self, status: str) -> None:
        """The last item is complete, or cut short."""
        if not self._open:
            return
        item, text = self.items[-1], "".join(self._parts)
        where, kind = self._where(), self._open
        item["status"] = status
        if kind == "function_call":
            item["arguments"] = text
            self._tell("response.function_call_arguments.done", **where, name=item["name"], arguments=text)
        else:
            (part,) = item["content"]
            part["text"] = text
            name = "response.output_text.done" if kind == "message" else "response.reasoning_text.done"
            more = {"logprobs": part["logprobs"]} if kind == "message" else {}
            self._tell(name, **where, content_index=0, text=text, **more)
            self._tell("response.content_part.done", **where, content_index=0, part=part)
        self._tell("response.output_item.done", output_index=where["output_index"], item=item)
        self._open = ""

    def _more_text(self, text: str, scored: Sequence[Scored]) -> None:
        self._turn_to("message")
        logprobs = chat_logprobs(scored, self._pieces)["content"] if scored else []
        self.items[-1]["content"][0]["logprobs"] += logprobs
        self._text_delta("response.output_text.delta", text, logprobs=logprobs)

    def _text_delta(self, name: str, text: str, **more: Any) -> None:
        self._parts.append(text)
        self._tell(name, **self._where(), content_index=0, delta=text, **more)

    def _turn_to(self, kind: str) -> None:
        if self._open == kind:
            return
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            item = {"id": _id("msg"), "type": kind, "role": "assistant", "content": [part]}
        else:
            part = {"type": "reasoning_text", "text": ""}
            item = {"id": _id("rs"), "type": kind, "summary": [], "content": [part]}
        self._begin(kind, item, shown={"content": []})
        self._tell("response.content_part.added", **self._where(), content_index=0, part=part)

    def _call(self, call: Call) -> None:
        item = {
            "id": _id("fc"), "type": "function_call", "call_id": call.id, "name": call.name, "arguments": "",
        }  # fmt: skip
        if namespace := self._namespaces.get(call.name):
            item["namespace"] = namespace
        self._begin("function_call", item, shown={})

    def _begin(self, kind: str, item: dict[str, Any], shown: dict[str, Any]) -> None:
        self.end("completed")
        item["status"] = "in_progress"
        self.items.append(item)
        self._open, self._parts = kind, []
        self._tell("response.output_item.added", output_index=len(self.items) - 1, item=item | shown)

    def _where(self) -> dict[str, Any]:
        return {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1}


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
