"""Fields that would change the answer and that muxd does not serve: refused by name, never ignored.

Each has a test of the values at which it changes nothing (``functions: []``, ``best_of: 1``). The structs of
``muxd.api.schemas`` declare the fields; the generating endpoints call ``refuse_unserved`` after decoding.
"""

from collections.abc import Callable, Collection
from typing import Any

from msgspec import Struct

from muxd.errors import BadRequest


def _empty(value: Any) -> bool:
    return not value


HARMLESS: dict[str, Callable[[Any], bool]] = {
    # OpenAI's
    "functions": _empty,
    "function_call": lambda value: value in ("none", "auto"),
    "modalities": lambda value: value == ["text"],
    "audio": _empty,
    "web_search_options": lambda value: False,
    "suffix": _empty,
    "best_of": lambda value: value == 1,
    # vLLM's
    "use_beam_search": _empty,
    "length_penalty": lambda value: value == 1,
    "truncate_prompt_tokens": lambda value: False,
    "include_stop_str_in_output": _empty,
    "skip_special_tokens": lambda value: value is True,
    "documents": _empty,
    "chat_template": lambda value: False,
    "prompt_embeds": lambda value: False,
}
_HINTS = {
    "functions": "they have become tools: send tools and tool_choice",
    "function_call": "it has become tool_choice, beside tools",
    "modalities": 'only ["text"] is served',
    "skip_special_tokens": "special tokens are always left out of the text",
    "chat_template": "the operator sets the template, with chat_template in the model's [[model]] table",
    "best_of": "it must equal n",
    "suffix": "a model that fills in has markers for it, which the prompt can hold",
}


def refuse_unserved(body: Struct, *, served: Collection[str] = ()) -> None:
    """Raises BadRequest naming the first field of ``body`` that muxd would have to ignore. ``served``: names
    that mean something else at its endpoint."""
    for name in body.__struct_fields__:
        if name in served:
            continue
        harmless = HARMLESS.get(name)
        value = getattr(body, name) if harmless else None
        if harmless is None or value is None or harmless(value) or _switched_off(body, name, value):
            continue
        hint = _HINTS.get(name, "leave it out")
        raise BadRequest(f"{name} is not served; {hint}", param=name)


def _switched_off(body: Struct, name: str, value: Any) -> bool:
    if name == "best_of":
        return bool(value == (getattr(body, "n", None) or 1))
    return name == "functions" and getattr(body, "function_call", None) == "none"
