"""Which dialect a model writes its calls in: by its chat template, or as the operator says.

A model whose template knows no tools is told of them, and of what was called, in words.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from muxd.text.call_readers import GemmaCall, JsonCalls, MistralCalls
from muxd.text.calls import Dialect

DIALECTS: dict[str, Dialect] = {
    one.name: one
    for one in (
        # Qwen 2.5 and 3, too; Qwen2.5-Coder leaves its markers out.
        Dialect(
            "hermes", JsonCalls, ("<tool_call>",), ("</tool_call>",), leads=("```json", "```"), bare=True
        ),
        Dialect("mistral", MistralCalls, ("[TOOL_CALLS]",), quotes=("[ARGS]", "[CALL_ID]"), short_ids=True),
        Dialect(
            "gemma",
            partial(GemmaCall, quote='<|"|>'),
            ("<|tool_call>",),
            ("<tool_call|>",),
            quotes=('<|"|>',),
        ),
        Dialect(
            "functiongemma",
            partial(GemmaCall, quote="<escape>"),
            ("<start_function_call>",),
            ("<end_function_call>",),
            quotes=("<escape>",),
        ),
        Dialect("llama3", JsonCalls, ends=(";", ","), leads=("<|python_tag|>",)),
        Dialect("json", JsonCalls, ends=(";", ",", "```"), leads=("```json", "```")),
    )
}


def dialect_of(template: str) -> str:
    """The name of the dialect that a chat template teaches."""
    for name in ("hermes", "mistral", "gemma", "functiongemma"):
        if DIALECTS[name].begins[0] in template:
            return name
    return "llama3" if "<|start_header_id|>" in template or "<|python_tag|>" in template else "json"


_INSTRUCTION = """You may call functions. Each of these lines describes one, its parameters as JSON Schema:
{tools}
To call one, answer with nothing but a JSON object of its name and arguments:
{{"name": NAME, "arguments": OBJECT}}
To call several, answer with a JSON list of such objects. Where no function helps, answer as usual."""


def in_words(turns: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """A conversation with tools for a template that knows none: what there is, what was called and what came
    of it as text. ``turns`` as ``muxd.text.conversation`` takes them."""
    lines = "\n".join(_text(tool.get("function", tool)) for tool in tools)
    told = _INSTRUCTION.format(tools=lines)
    names: dict[Any, str] = {}
    said = [_in_words(turn, names) for turn in turns]
    if said and said[0].get("role") in ("system", "developer"):
        return [{**said[0], "content": f"{_plain(said[0].get('content'))}\n\n{told}"}, *said[1:]]
    return [{"role": "system", "content": told}, *said]


def _in_words(turn: Mapping[str, Any], names: dict[Any, str]) -> dict[str, Any]:
    if turn.get("role") == "tool":
        name = names.get(turn.get("tool_call_id")) or turn.get("name") or "the function"
        return {"role": "user", "content": f"Result of {name}:\n{_plain(turn.get('content'))}"}
    calls = [call["function"] for call in turn.get("tool_calls") or () if _is_call(call)]
    if not calls:
        return dict(turn)
    names |= {call.get("id"): call["function"].get("name") for call in turn["tool_calls"] if _is_call(call)}
    said = [_text({"name": one.get("name"), "arguments": _object(one.get("arguments"))}) for one in calls]
    text = _plain(turn.get("content"))
    called = said[0] if len(said) == 1 else f"[{', '.join(said)}]"
    return {"role": "assistant", "content": f"{text}\n{called}" if text else called}


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and isinstance(call.get("function"), dict)


def _plain(content: Any) -> str:
    if isinstance(content, list):
        return "\n".join(part["text"] for part in content)
    return content or ""


def _object(arguments: Any) -> Any:
    try:
        return msgspec.json.decode(arguments) if isinstance(arguments, str) else arguments
    except (msgspec.DecodeError, RecursionError):
        return arguments


def _text(value: Any) -> str:
    return msgspec.json.encode(value).decode()
