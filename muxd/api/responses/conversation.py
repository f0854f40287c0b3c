"""The body of /v1/responses as a conversation. Pure."""

from collections.abc import Iterator, Sequence
from typing import Any

from muxd.api.decoding import convert
from muxd.api.responses.schemas import FlatTool, InputItem, ResponsesRequest
from muxd.api.schemas import ChatRequest
from muxd.api.shapes import call_object
from muxd.api.translated import Translated, refuse
from muxd.api.translated import translate as core

_LOGPROBS = "message.output_text.logprobs"
_PARAMS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
# Run by who answers; clients offer them unasked, and a model that is not told of them can do without.
_HOSTED = frozenset({"web_search", "web_search_2025_08_26", "web_search_preview", "image_generation"})
_STATE = "muxd keeps no answers; send the whole conversation in input"


def translate(body: ResponsesRequest) -> Translated:
    """Raises BadRequest naming the field."""
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise refuse(name, _STATE)
    if body.background:
        raise refuse("background", "muxd answers at once; leave it out")
    offered = dict(functions(body.tools or ()))
    tools = None if body.tools is None else [_tool(one, where) for where, one in offered.items()]
    params = _PARAMS | {f"tools[{index}]": where for index, where in enumerate(offered)}
    logprobs = _LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    fields = {
        "model": body.model,
        "messages": _messages(body),
        "max_completion_tokens": body.max_output_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logprobs": logprobs or None,
        "top_logprobs": body.top_logprobs,
        "stream": body.stream,
        "tools": tools,
        "tool_choice": _choice(body),
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning else None,
        "response_format": _format(body),
        "chat_template_kwargs": body.chat_template_kwargs,
    }
    made = core(fields, ChatRequest, params, _told(body))
    made.ignored = sorted({f"tools.{one.type}" for one in body.tools or () if one.type in _HOSTED})
    return made


def _told(body: ResponsesRequest) -> dict[str, Any]:
    """What the answer repeats of the request."""
    effort = body.reasoning.effort if body.reasoning else None
    whose = {} if body.user is None else {"user": body.user}
    return whose | {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": effort, "summary": None},
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [_told_tool(one) for one in body.tools or () if one.type not in _HOSTED],
        "top_logprobs": body.top_logprobs or 0,
        "truncation": body.truncation or "disabled",
    }  # fmt: skip


def _told_tool(tool: FlatTool) -> dict[str, Any]:
    shown: dict[str, Any] = {"type": tool.type, "name": tool.name, "description": tool.description}
    if tool.type == "namespace":
        return shown | {"tools": [_told_tool(one) for one in tool.tools or ()]}
    return shown | {"parameters": tool.parameters or {}, "strict": bool(tool.strict)}


def functions(tools: Sequence[FlatTool], within: str = "tools") -> Iterator[tuple[str, FlatTool]]:
    """Those that the model is told of, each with where it stands: a namespace's too, by their own names.
    Raises BadRequest."""
    for index, tool in enumerate(tools):
        where = f"{within}[{index}]"
        if tool.type == "namespace" and within == "tools":
            yield from functions(tool.tools or (), f"{where}.tools")
        elif tool.type == "function":
            yield where, tool
        elif tool.type not in _HOSTED or within != "tools":
            raise refuse(f"{where}.type", f'only "function" is served, not {tool.type[:40]!r}')


def _tool(tool: FlatTool, where: str) -> dict[str, Any]:
    if not tool.name:
        raise refuse(f"{where}.name", "is required")
    function: dict[str, Any] = {"name": tool.name}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.parameters is not None:
        function["parameters"] = tool.parameters
    return {"type": "function", "function": function}


def _choice(body: ResponsesRequest) -> Any:
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return choice
    return {"type": choice.type, "function": {"name": choice.name}} if choice.name else {"type": choice.type}


def _format(body: ResponsesRequest) -> dict[str, Any] | None:
    """``text.format`` as ``response_format`` has it."""
    given = body.text.format if body.text else None
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {key: given[key] for key in given if key != "type"}}


def _messages(body: ResponsesRequest) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = []
    if body.instructions:
        said.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*said, {"role": "user", "content": body.input}]
    thought = ""
    for index, raw in enumerate(body.input):
        where = f"input[{index}]"
        item = convert(raw, InputItem, where)
        match item.type:
            case "reasoning":
                thought += _thought(item)
            case "message":
                message = _message(item, where)
                if thought and message["role"] == "assistant":
                    message["reasoning_content"], thought = thought, ""
                said.append(message)
            case "function_call":
                _add_call(said, item, where, thought)
                thought = ""
            case "function_call_output":
                if item.output is None:
                    raise refuse(f"{where}.output", "is required")
                content = _content(item.output, f"{where}.output")
                said.append({"role": "tool", "tool_call_id": item.call_id, "content": content})
            case _:
                kinds = "message, function_call, function_call_output and reasoning"
                raise refuse(f"{where}.type", f"muxd takes {kinds}, not {item.type[:40]!r}")
    return said


def _message(item: InputItem, where: str) -> dict[str, Any]:
    if item.role not in ("user", "assistant", "system", "developer"):
        raise refuse(f"{where}.role", "must be user, assistant, system or developer")
    if item.content is None:
        raise refuse(f"{where}.content", "is required")
    return {"role": item.role, "content": _content(item.content, f"{where}.content")}


def _content(content: str | list[Any], where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind not in ("input_text", "output_text", "text", "refusal"):
            raise refuse(
                f"{where}[{index}].type", f"this server takes text parts only, not {str(kind)[:40]!r}"
            )
        if not isinstance(part.get("refusal" if kind == "refusal" else "text"), str):
            raise refuse(f"{where}[{index}].text", "is required")
    return content


def _thought(item: InputItem) -> str:
    parts = item.content if isinstance(item.content, list) and item.content else item.summary or []
    return "".join(
        part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


def _add_call(said: list[dict[str, Any]], item: InputItem, where: str, thought: str) -> None:
    """Calls that follow each other, or a text of the assistant, are one turn."""
    for name in ("call_id", "name", "arguments"):
        if getattr(item, name) is None:
            raise refuse(f"{where}.{name}", "is required")
    call = call_object(item.call_id, item.name or "", item.arguments)
    if not (said and said[-1]["role"] == "assistant" and not thought):
        said.append({"role": "assistant", "content": None})
        if thought:
            said[-1]["reasoning_content"] = thought
    said[-1].setdefault("tool_calls", []).append(call)
