"""What is the same in every answer to one request, and the two whole (not streamed) answers."""

from typing import Any, Literal, NamedTuple

from msgspec import Struct

from muxd.api.choice import PromptScored, Scored
from muxd.api.logprobs import chat_logprobs, echoed_logprobs, joined, prompt_logprobs, text_logprobs
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
    prompt: list[PromptScored] | None = None  # where any of it is shown


class Shown(NamedTuple):
    """What of a prompt's log-probabilities: before the answer's, and so many of each token (-1: none)."""

    echo: bool
    prompt: int


def whole_answer(
    answer: Answer, choices: list[Whole], usage: Usage, tokenizer: Tokenizer, shown: Shown
) -> dict[str, Any]:
    """``chat.completion`` or ``text_completion``, every required key present."""
    chat = answer.kind == "chat"
    made = [
        _chat_choice(choice, tokenizer) if chat else _text_choice(choice, tokenizer, shown)
        for choice in choices
    ]
    more = _prompt(choices[0], tokenizer, shown) if chat else {}
    return more | {
        "id": answer.id,
        "object": "chat.completion" if chat else "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": made,
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


def _text_choice(choice: Whole, tokenizer: Tokenizer, shown: Shown) -> dict[str, Any]:
    logprobs = text_logprobs(choice.scored, tokenizer, choice.echoed) if choice.scored else None
    if shown.echo:
        before = echoed_logprobs(choice.prompt or [], tokenizer)
        logprobs = before if logprobs is None else joined(before, logprobs)
    return (
        _token_ids(choice)
        | _prompt(choice, tokenizer, shown)
        | {
            "index": choice.index,
            "text": choice.text,
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        }
    )


def _prompt(choice: Whole, tokenizer: Tokenizer, shown: Shown) -> dict[str, Any]:
    """Beside the choice of a completion, and beside a chat's choices, which have one prompt."""
    if shown.prompt < 0:
        return {}
    return {"prompt_logprobs": prompt_logprobs(choice.prompt or [], tokenizer, shown.prompt)}


def _token_ids(choice: Whole) -> dict[str, Any]:
    return {} if choice.token_ids is None else {"token_ids": choice.token_ids}
