"""What is the same in every answer to one request, and the two whole (not streamed) answers."""

from typing import Any, Literal

from msgspec import Struct

from muxd.api.choice import Scored
from muxd.api.logprobs import chat_logprobs, text_logprobs
from muxd.text.tokenizer import Tokenizer

Kind = Literal["chat", "text"]
Usage = dict[str, int | dict[str, int]]


class Answer(Struct, frozen=True):
    """Identity of one answer: every chunk repeats it."""

    kind: Kind
    id: str
    created: int  # Unix time, seconds
    model: str


class Whole(Struct):
    """One finished choice."""

    index: int
    text: str
    scored: list[Scored]
    finish: str
    echoed: int  # characters of ``text`` that are the prompt
    token_ids: list[int] | None  # of the answer, where asked for


def whole_answer(answer: Answer, choices: list[Whole], usage: Usage, tokenizer: Tokenizer) -> dict[str, Any]:
    """``chat.completion`` or ``text_completion``, every required key present."""
    chat = answer.kind == "chat"
    make = _chat_choice if chat else _text_choice
    return {
        "id": answer.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": [make(choice, tokenizer) for choice in choices],
        "usage": usage,
    }


def usage_object(prompt: int, cached: int, completion: int) -> Usage:
    """Tokens: every prompt once, ``cached`` of them found computed, all choices together."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _chat_choice(choice: Whole, tokenizer: Tokenizer) -> dict[str, Any]:
    return _token_ids(choice) | {
        "index": choice.index,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": chat_logprobs(choice.scored, tokenizer) if choice.scored else None,
        "finish_reason": choice.finish,
    }


def _text_choice(choice: Whole, tokenizer: Tokenizer) -> dict[str, Any]:
    logprobs = text_logprobs(choice.scored, tokenizer, choice.echoed) if choice.scored else None
    return _token_ids(choice) | {
        "index": choice.index,
        "text": choice.text,
        "logprobs": logprobs,
        "finish_reason": choice.finish,
    }


def _token_ids(choice: Whole) -> dict[str, Any]:
    return {} if choice.token_ids is None else {"token_ids": choice.token_ids}
