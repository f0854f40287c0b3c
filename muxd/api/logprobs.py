"""Log-probabilities in OpenAI's two shapes."""

from collections.abc import Sequence
from typing import Any

from muxd.messages import TokenLogprob
from muxd.text.pieces import Pieces

Scored = tuple[int, TokenLogprob]  # a token and its log-probability
# A token of a prompt, its log-probability, and how many had more, plus one; the first has none.
PromptScored = tuple[int, TokenLogprob | None, int]


def chat_logprobs(scored: Sequence[Scored], pieces: Pieces) -> dict[str, Any]:
    """``{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}``."""
    content = [
        {
            **_entry(token, score.logprob, pieces),
            "top_logprobs": [_entry(other, value, pieces) for other, value in score.top],
        }
        for token, score in scored
    ]
    return {"content": content, "refusal": None}


def text_logprobs(scored: Sequence[Scored], pieces: Pieces, offset: int) -> dict[str, Any]:
    """Parallel lists; ``offset`` is where the first token's text begins, in characters of the answer.

    As in OpenAI's and vLLM's answers, the sampled token is always among ``top_logprobs``.
    """
    return _lists([(token, score) for token, score in scored], pieces, offset)


def echoed_logprobs(prompt: Sequence[PromptScored], pieces: Pieces) -> dict[str, Any]:
    """The same of a prompt, with which the answer begins: nothing is known of its first token."""
    return _lists([(token, score) for token, score, _ in prompt], pieces, 0)


def both(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """Both lists of each kind, one after the other."""
    return {name: first[name] + then[name] for name in first}


def prompt_logprobs(prompt: Sequence[PromptScored], pieces: Pieces, count: int) -> list[Any]:
    """vLLM's: for each token of the prompt its own and the ``count`` best by id, null for the first."""
    return [score and _by_id(token, score, rank, pieces, count) for token, score, rank in prompt]


def _by_id(
    token: int, score: TokenLogprob, rank: int, pieces: Pieces, count: int
) -> dict[str, dict[str, Any]]:
    own = (token, score.logprob, rank)
    best = [(other, value, place) for place, (other, value) in enumerate(score.top[:count], 1)]
    return {
        str(one): {"logprob": value, "rank": place, "decoded_token": _text(one, pieces)}
        for one, value, place in [own, *best]
    }


def _lists(scored: list[tuple[int, TokenLogprob | None]], pieces: Pieces, offset: int) -> dict[str, Any]:
    tokens = [_text(token, pieces) for token, _ in scored]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [
        score and {_text(other, pieces): value for other, value in [*score.top, (token, score.logprob)]}
        for token, score in scored
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [score and score.logprob for _, score in scored],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _entry(token: int, logprob: float, pieces: Pieces) -> dict[str, Any]:
    data = pieces.alone(token)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def _text(token: int, pieces: Pieces) -> str:
    """Part of a character shows as U+FFFD; the chat shape has the bytes."""
    return pieces.alone(token).decode(errors="replace")
