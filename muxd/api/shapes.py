"""What is the same in every answer of OpenAI's two older endpoints, and the answers that are not streamed."""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec import Struct

from muxd.api.face import Called, Tally, Whole
from muxd.api.logprobs import chat_logprobs, text_logprobs
from muxd.text.tokenizer import Tokenizer

Kind = Literal["chat", "text"]


class Answer(Struct, frozen=True):
    """Identity of one answer: every chunk repeats it."""

    kind: Kind
    id: str
    created: int  # Unix time, seconds
    model: str


def whole_answer(
    answer: Answer, choices: Sequence[Whole], tally: Tally, tokenizer: Tokenizer, *, token_ids: bool
) -> dict[str, Any]:
    """``chat.completion`` or ``text_completion``, every required key present."""
    chat = answer.kind == "chat"
    make = _chat_choice if chat else _text_choice
    return {
        "id": answer.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [
            ({"token_ids": choice.token_ids} if token_ids else {}) | make(choice, tokenizer)
            for choice in choices
        ],
        "usage": usage_object(tally),
    }


def usage_object(tally: Tally) -> dict[str, Any]:
    return {
        "prompt_tokens": tally.prompt,
        "completion_tokens": tally.completion,
        "total_tokens": tally.prompt + tally.completion,
        "prompt_tokens_details": {"cached_tokens": tally.cached},
    }


def call_object(call: Called) -> dict[str, Any]:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _chat_choice(choice: Whole, tokenizer: Tokenizer) -> dict[str, Any]:
    silent = not choice.text and bool(choice.calls)
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if silent else choice.text,
        "refusal": None,
    }
    if choice.thought:  # DeepSeek's name and OpenRouter's: clients look for either
        message |= {"reasoning_content": choice.thought, "reasoning": choice.thought}
    if choice.calls:
        message["tool_calls"] = [call_object(call) for call in choice.calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": chat_logprobs(choice.scored, tokenizer) if choice.scored else None,
        "finish_reason": choice.finish,
    }


def _text_choice(choice: Whole, tokenizer: Tokenizer) -> dict[str, Any]:
    logprobs = text_logprobs(choice.scored, tokenizer, choice.echoed) if choice.scored else None
    return {
        "index": choice.index,
        "text": choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish,
    }
