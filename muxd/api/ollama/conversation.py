"""The bodies of Ollama's API as the core's. Pure."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from muxd.api.ollama.schemas import OllamaChatRequest, OllamaGenerateRequest, OllamaRequest
from muxd.api.schemas import ChatRequest, CompletionRequest
from muxd.api.shapes import call_object
from muxd.api.times import zulu
from muxd.api.translated import Translated, refuse, translate

_PARAMS = {
    "max_tokens": "options.num_predict",
    "repetition_penalty": "options.repeat_penalty",
    "response_format": "format",
    **{
        name: f"options.{name}"
        for name in (
            *("temperature", "top_p", "top_k", "min_p", "seed", "stop"),
            *("presence_penalty", "frequency_penalty"),
        )
    },
}


def translate_chat(body: OllamaChatRequest) -> Translated:
    """Raises BadRequest naming the field."""
    said = [_message(one, f"messages[{index}]") for index, one in enumerate(body.messages)]
    fields = _fields(body) | {"messages": said, "tools": body.tools}
    if said[-1].get("role") == "assistant" and not said[-1].get("tool_calls"):
        fields["continue_final_message"] = True
    return translate(fields, ChatRequest, _PARAMS)


def translate_generate(body: OllamaGenerateRequest, *, chat: bool) -> Translated:
    """A conversation of one turn, or, ``raw`` or without a chat template, a text to go on from."""
    for name in ("suffix", "template", "images", "context"):
        if getattr(body, name):
            raise refuse(name, "is not served; leave it out")
    fields = _fields(body)
    if body.raw or not chat:
        if body.system:
            raise refuse("system", "needs a model with a chat template, and raw: false")
        for name in ("chat_template_kwargs", "reasoning_effort", "top_logprobs"):
            fields.pop(name)
        scores = (body.top_logprobs or 0) if body.logprobs else None
        return translate(fields | {"prompt": body.prompt, "logprobs": scores}, CompletionRequest, _PARAMS)
    system = [{"role": "system", "content": body.system}] if body.system else []
    fields["messages"] = [*system, {"role": "user", "content": body.prompt}]
    return translate(fields, ChatRequest, _PARAMS | {"messages": "prompt"})


def loaded(body: OllamaRequest) -> dict[str, Any]:
    """The answer where nothing was said: the model is there."""
    said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}}
    said = said if isinstance(body, OllamaChatRequest) else {"response": ""}
    made = zulu(datetime.now(UTC))
    return {"model": body.model, "created_at": made, **said, "done": True, "done_reason": "load"}


def _fields(body: OllamaRequest) -> dict[str, Any]:
    options = body.options
    fields: dict[str, Any] = {
        "model": body.model,
        "stream": body.stream is not False,
        "logprobs": body.logprobs,
        "top_logprobs": body.top_logprobs,
        "response_format": _format(body.format),
        "chat_template_kwargs": None if body.think is None else {"enable_thinking": bool(body.think)},
        "reasoning_effort": body.think if isinstance(body.think, str) else None,
    }
    if options is not None:
        predict = options.num_predict
        fields |= {name: getattr(options, name) for name in options.__struct_fields__ if name in _PARAMS} | {
            "max_tokens": predict if predict is not None and predict > 0 else None,
            "repetition_penalty": options.repeat_penalty,
        }
    return fields


def _format(given: Any) -> dict[str, Any] | None:
    if not given:
        return None
    if given == "json":
        return {"type": "json_object"}
    if not isinstance(given, dict):
        raise refuse("format", 'must be "json" or a JSON schema')
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": given}}


def _message(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """Calls here have objects for arguments and no ids; images are not taken."""
    if raw.get("images"):
        raise refuse(f"{where}.images", "this server takes text only")
    turn = {name: value for name, value in raw.items() if name not in ("images", "tool_name", "tool_calls")}
    if raw.get("tool_name"):
        turn["name"] = raw["tool_name"]
    calls = raw.get("tool_calls")
    if isinstance(calls, list) and calls:
        turn["tool_calls"] = [_call(one, f"{where}.tool_calls[{index}]") for index, one in enumerate(calls)]
    return turn


def _call(raw: Any, where: str) -> dict[str, Any]:
    function = raw.get("function") if isinstance(raw, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise refuse(f"{where}.function.name", "is required")
    arguments = msgspec.json.encode(function.get("arguments") or {}).decode()
    return call_object(raw.get("id") or function["name"], function["name"], arguments)
