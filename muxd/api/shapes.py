"""What is the same in every answer of OpenAI's two older endpoints, and the answers that are not streamed."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from msgspec import Struct

from muxd.api.face import Tally, Whole, called, joined
from muxd.api.logprobs import both, chat_logprobs, echoed_logprobs, prompt_logprobs, text_logprobs
from muxd.text.pieces import Pieces
from muxd.text.sayings import Content, Thought

Kind = Literal["chat", "text"]


class Shown(NamedTuple):
    """What of a prompt's log-probabilities: before the answer's, and so many of each token (-1: none)."""

    echo: bool
    prompt: int


UNSCORED = Shown(False, -1)


class Answer(Struct, frozen=True):
    """Identity of one answer: every chunk repeats it."""

    kind: Kind
    id: str
    created: int  # Unix time, seconds
    model: str


def whole_answer(
    answer: Answer,
    choices: Sequence[Whole],
    tally: Tally,
    pieces: Pieces,
    echoes: Sequence[str],
    shown: Shown,
    *,
    token_ids: bool,
) -> dict[str, Any]:
    """``chat.completion`` or ``text_completion``, every required key present. ``echoes``: the text to put
    before each choice's."""
    made = []
    for choice, echo in zip(choices, echoes or [""] * len(choices), strict=True):
        ids = {"token_ids": choice.token_ids} if token_ids else {}
        if answer.kind == "chat":
            made.append(ids | _chat_choice(choice, pieces))
        else:
            made.append(ids | _text_choice(choice, pieces, echo, shown))
    more = _prompt(choices[0], pieces, shown) if answer.kind == "chat" else {}
    return more | {
        "id": answer.id,
        "object": "chat.completion" if answer.kind == "chat" else "text_completion",
        "created": answer.created,
        "model": answer.model,
        "choices": made,
        "usage": usage_object(tally),
    }


def usage_object(tally: Tally) -> dict[str, Any]:
    usage: dict[str, Any] = {
        "prompt_tokens": tally.prompt,
        "completion_tokens": tally.completion,
        "total_tokens": tally.prompt + tally.completion,
        "prompt_tokens_details": {"cached_tokens": tally.cached},
    }
    if tally.thinking:
        usage["completion_tokens_details"] = {"reasoning_tokens": tally.thinking}
    return usage


def call_object(id: str | None, name: str, arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _chat_choice(choice: Whole, pieces: Pieces) -> dict[str, Any]:
    text, thought = joined(choice.sayings, Content), joined(choice.sayings, Thought)
    calls = called(choice.sayings)
    silent = not text and bool(calls)
    message: dict[str, Any] = {"role": "assistant", "content": None if silent else text, "refusal": None}
    if thought:  # DeepSeek's name and OpenRouter's: clients look for either
        message |= {"reasoning_content": thought, "reasoning": thought}
    if calls:
        message["tool_calls"] = [call_object(call.id, call.name, call.arguments) for call in calls]
    return {
        "index": choice.index,
        "message": message,
        "logprobs": chat_logprobs(choice.scored, pieces) if choice.scored else None,
        "finish_reason": choice.finish,
    }


def _text_choice(choice: Whole, pieces: Pieces, echo: str, shown: Shown) -> dict[str, Any]:
    logprobs = text_logprobs(choice.scored, pieces, len(echo)) if choice.scored else None
    if shown.echo:
        before = echoed_logprobs(choice.prompt, pieces)
        logprobs = before if logprobs is None else both(before, logprobs)
    return _prompt(choice, pieces, shown) | {
        "index": choice.index,
        "text": echo + joined(choice.sayings, Content),
        "logprobs": logprobs,
        "finish_reason": choice.finish,
    }


def _prompt(choice: Whole, pieces: Pieces, shown: Shown) -> dict[str, Any]:
    """Beside the choice of a completion, and beside a chat's choices, which have one prompt."""
    if shown.prompt < 0:
        return {}
    return {"prompt_logprobs": prompt_logprobs(choice.prompt, pieces, shown.prompt)}
