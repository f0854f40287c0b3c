"""Conversations as OpenAI clients send them, for every feature that templates look at."""

from typing import Any

Conversation = list[dict[str, Any]]
ARGUMENTS = '{"city": "Rome", "days": 2, "deep": {"é": [1.5, null, true, "<b>\\""]}}'


def _turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def _call(number: int, arguments: str = ARGUMENTS) -> dict[str, Any]:
    function = {"name": "weather", "arguments": arguments}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def _result(number: int, content: Any) -> dict[str, Any]:
    return _turn("tool", content, tool_call_id=f"call0000{number}", name="weather")


def _text(*texts: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text} for text in texts]


PLAIN: dict[str, Conversation] = {
    "one": [_turn("user", "Hi there")],
    "several": [
        _turn("system", " You are X.\n"),
        _turn("user", " Hi \n"),
        _turn("assistant", "Hello!\n"),
        _turn("user", "And 'é' <b> {{ x }} \\n?"),
    ],
    "assistant last": [_turn("user", "Q"), _turn("assistant", "A")],
    "names": [
        _turn("user", "Hi", name="ann"),
        _turn("assistant", "no", refusal="no", z=[1]),
        _turn("user", ""),
    ],
    "thoughts in text": [
        _turn("user", "Q"),
        _turn("assistant", "<think>\nso\n</think>\n\nA"),
        _turn("user", "R"),
    ],
    "reasoning": [
        _turn("user", "Q"),
        _turn("assistant", "A", reasoning_content="because"),
        _turn("user", "R"),
    ],
    "reasoning by its other name": [_turn("user", "Q"), _turn("assistant", "A", reasoning="because")],
}
CALLS: dict[str, Conversation] = {
    "call": [
        _turn("user", "Weather?"),
        _turn("assistant", None, tool_calls=[_call(1)]),
        _result(1, '{"t": 20}'),
    ],
    "two calls": [
        _turn("user", "Weather?"),
        _turn(
            "assistant", "Looking.", tool_calls=[_call(1), _call(2, "{}")], reasoning_content="I must look."
        ),
        _result(1, "20"),
        _result(2, "21"),
        _turn("assistant", "20 and 21."),
        _turn("user", "Thanks"),
    ],
}
PARTS: dict[str, Conversation] = {
    "parts": [
        _turn("system", _text("sys")),
        _turn("user", _text("one", " two")),
        _turn("assistant", _text("A")),
    ],
    "parts of a result": [*CALLS["call"][:2], _result(1, _text("20", "C")), _turn("user", "text")],
}
DEVELOPER: Conversation = [_turn("developer", "Be nice."), _turn("user", "Hi " * 30)]
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Look up the weather é",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": " Name\nof <the> city "},
                    "unit": {"enum": ["C", "F"]},
                    "days": {"type": ["integer", "null"]},
                    "stops": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"at": {"type": "number"}}},
                    },
                },
                "required": ["city"],
            },
        },
    }
]
