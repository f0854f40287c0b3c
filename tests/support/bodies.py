"""Bodies for each endpoint: right ones, those at the ends of what a field may have, and damaged ones.

All by one generator of random numbers. A property test hands in hypothesis's (``st.randoms``), which looks
for the smallest that fails; a daemon gets those of seeds.
"""

import copy
import json
import math
import random
import struct
from typing import Any, NamedTuple

import msgspec

from muxd.api.anthropic.schemas import CountRequest, MessagesRequest
from muxd.api.ollama.schemas import (
    OllamaChatRequest,
    OllamaGenerateRequest,
    OllamaTextRequest,
    OllamaTextsRequest,
    ShowRequest,
)
from muxd.api.responses.schemas import ResponsesRequest
from muxd.api.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from muxd.engine.values import RANGES
from support.mutation import NASTY, damaged_bytes, damaged_json

SCHEMAS: dict[str, type[msgspec.Struct]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/messages": MessagesRequest,
    "/v1/messages/count_tokens": CountRequest,
    "/api/chat": OllamaChatRequest,
    "/api/generate": OllamaGenerateRequest,
    "/api/embed": OllamaTextsRequest,
    "/api/embeddings": OllamaTextRequest,
    "/api/show": ShowRequest,
}
ROLES = ("user", "system", "assistant", "tool", "developer", "wizard")
# Among them some that float32 has no number for, or few digits.
NUMBERS = (
    0, -0.0, 1, -1, 2, 3, 0.5, 5e-324, 1e-46, 1e-39, 1e39, 1e308, 2**31 - 1, 2**31, 2**63, -(2**63), 2**70,
)  # fmt: skip
COUNTS = (0, 1, 2, 3, 20, 63, 64, 2**31 - 1, 2**31, -1)
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
# Further values of fields, most of them such that the request is answered.
FIELDS: dict[str, tuple[Any, ...]] = {
    "seed": (-1, 0, 7, 2**63 - 1, -(2**63), 2**63),
    "stop": ("a", "", [], ["a", "bc"], ["x"] * 64, ["x"] * 65, "é", "\n" * 300),
    "max_tokens": COUNTS, "max_completion_tokens": COUNTS, "min_tokens": COUNTS,
    "n": (1, 1, 2, 2, 3, 3, 0, 128, 129),
    "ignore_eos": (True, False), "stream": (True, True, False), "echo": (True, False),
    "return_token_ids": (True, False), "stream_options": ({"include_usage": True}, {}),
    "logprobs": (True, False, 0, 1, 20, 21), "top_logprobs": (0, 1, 20, 21),
    "max_output_tokens": COUNTS, "stop_sequences": ([], ["a"], [""], ["x"] * 65), "raw": (True, False),
    "tools": ([], [TOOL], [TOOL, TOOL], [TOOL["function"]], [{"type": "function"}], [{"name": "g"}]),
    "tool_choice": ("auto", "none", "required", "x", {"type": "none"}, {"type": "function", "name": "f"}),
    "parallel_tool_calls": (True, False), "reasoning_effort": ("low", ""), "think": (True, False, "high"),
    "continue_final_message": (True, False), "system": ("", "x", [{"type": "text", "text": "x"}], [{}]),
    "options": ({}, {"num_predict": -1, "stop": "a"}, {"temperature": 9}, {"top_k": 1}),
    "thinking": ({"type": "enabled"}, {"type": "disabled"}, {}), "instructions": ("", "x"),
    "reasoning": ({}, {"effort": "low"}, {"effort": None}), "text": ({}, {"format": {"type": "text"}}),
    "logit_bias": ({}, {"5": 100}, {"6": -100, "2": 3.5}, {str(2**70): -100}),
    "allowed_token_ids": ([5, 6, 7], [], [2**31]), "bad_words": (["a", "bc"], [], [""]),
    "response_format": (
        {"type": "text"}, {"type": "json_object"}, {"type": "json_object", "schema": {"enum": ["a", 1]}},
        {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}, {"type": "xml"},
    ),
    "structured_outputs": ({}, {"regex": "a+"}, {"regex": "("}, {"choice": ["a", "é"]}, {"grammar": "x"}),
    "guided_json": ({}, "{", {"type": "null"}), "guided_grammar": ('start: "a"', "?"),
    "guided_choice": (["a"], []), "guided_regex": ("[ab]{3}", "a{3,2}"),
    "add_generation_prompt": (True, False), "add_special_tokens": (True, False),
    "return_token_strs": (True, False), "chat_template_kwargs": ({}, {"shout": 1}, {"messages": []}),
}  # fmt: skip


class Body(NamedTuple):
    path: str
    data: bytes


class Bodies:
    """``chat`` has a template, ``text`` need not; both have ids below ``vocab``."""

    def __init__(self, chat: str, text: str, vocab: int):
        self._vocab = vocab
        turns = [{"role": "user", "content": "hi"}]
        self._right: dict[str, dict[str, Any]] = {
            "/v1/chat/completions": {"model": chat, "messages": turns, "max_tokens": 2},
            "/v1/completions": {"model": text, "prompt": "one two", "max_tokens": 2},
            "/tokenize": {"model": text, "prompt": "one two"},
            "/detokenize": {"model": text, "tokens": [1, 2, 3]},
            "/v1/responses": {"model": chat, "input": "hi", "max_output_tokens": 2},
            "/v1/messages": {"model": chat, "messages": turns, "max_tokens": 2},
            "/v1/messages/count_tokens": {"model": chat, "messages": turns},
            "/api/chat": {"model": chat, "messages": turns, "options": {"num_predict": 2}},
            "/api/generate": {"model": text, "prompt": "one two", "options": {"num_predict": 2}},
            "/api/show": {"model": text},
        }

    def at_the_ends(self, draw: random.Random) -> Body:
        """Fields with the least and the most that they may have, and a little beyond."""
        path, right = self._pick(draw)
        fields = self._fields(draw)
        names = [name for name in SCHEMAS[path].__struct_fields__ if name in fields]
        for name in draw.sample(names, draw.randint(min(1, len(names)), min(5, len(names)))):
            right[name] = draw.choice(fields[name])
        return Body(path, json.dumps(right).encode())

    def of_anything(self, draw: random.Random) -> Body:
        """Fields, also such as nobody declares, with whatever JSON has."""
        path, right = self._pick(draw)
        names = [*SCHEMAS[path].__struct_fields__, "unheard_of"]
        for name in draw.sample(names, draw.randint(1, min(4, len(names)))):
            right[name] = _messages(draw) if draw.randrange(4) == 0 else _value(draw)
        return Body(path, json.dumps(right).encode())

    def damaged(self, draw: random.Random) -> Body:
        """A right body with other bytes, or as JSON of another form."""
        path, right = self._pick(draw)
        return Body(path, draw.choice([damaged_bytes, damaged_json])(draw, json.dumps(right).encode()))

    def any(self, draw: random.Random) -> Body:
        ways = [self.at_the_ends] * 5 + [self.of_anything] * 2 + [self.damaged]
        return draw.choice(ways)(draw)

    def _pick(self, draw: random.Random) -> tuple[str, dict[str, Any]]:
        path = draw.choice([*self._right, "/v1/completions", "/v1/chat/completions"])
        return path, copy.deepcopy(self._right[path])

    def _fields(self, draw: random.Random) -> dict[str, tuple[Any, ...]]:
        ids = [draw.randrange(self._vocab) for _ in range(draw.randint(1, 5))]
        beyond: list[list[int]] = [[self._vocab], [-1], [2**31 - 1], [2**70]]
        every, text = list(range(self._vocab)), _text(draw)
        numbers = {name: _numbers(draw, low, high) for name, (low, high, *_) in RANGES.items()}
        return FIELDS | numbers | {
            "top_k": (-1, 0, 1, 5, self._vocab, 2**31 - 1, 2**31),
            "stop_token_ids": (ids, ids, [], every, every[1:], *beyond),
            "tokens": (ids, ids * 50, [], every, *beyond),
            "prompt": (ids, [ids, ids], ["a", "b"], text, [text] * 3, [ids, "a"], ids * 50, [], "", *beyond),
            "messages": (_messages(draw), _messages(draw), []),
            "input": ("x", _messages(draw), [], [{"type": "function_call_output", "output": text}], *beyond),
        }  # fmt: skip


def _numbers(draw: random.Random, low: float, high: float) -> tuple[float, ...]:
    inside = (math.nextafter(low, high), math.nextafter(high, low), draw.uniform(low, high))
    return (low, high, *inside, *NUMBERS)


def _messages(draw: random.Random) -> list[dict[str, Any]]:
    return [_message(draw) for _ in range(draw.randint(1, 3))]


def _message(draw: random.Random) -> dict[str, Any]:
    parts = [{"type": "text", "text": _text(draw)}, {"type": "text", "text": _value(draw)}]
    content = draw.choice([_text(draw), _text(draw), parts[:1], parts, _value(draw)])
    names = draw.sample(["name", "tool_calls", "reasoning_content", "unheard_of"], draw.randint(0, 2))
    return {"role": draw.choice(ROLES), "content": content} | {name: _value(draw) for name in names}


def _value(draw: random.Random, deep: int = 0) -> Any:
    """Any JSON; numbers that are none are written as ``json`` does, which no reader has to take."""
    match draw.randrange(7 if deep < 3 else 5):
        case 0 | 1:
            return copy.deepcopy(draw.choice(NASTY))
        case 2:
            return draw.choice([draw.choice(NUMBERS), draw.randint(-(2**70), 2**70), draw.randint(-2, 20)])
        case 3:
            return struct.unpack("d", draw.randbytes(8))[0]
        case 4:
            return _text(draw)
        case 5:
            return [_value(draw, deep + 1) for _ in range(draw.randrange(4))]
    return {_text(draw): _value(draw, deep + 1) for _ in range(draw.randrange(3))}


def _text(draw: random.Random) -> str:
    """Of any characters, halves of some among them."""
    most = draw.choice([0x80, 0x80, 0x800, 0x110000])
    return "".join(chr(draw.randrange(most)) for _ in range(draw.randrange(8)))
