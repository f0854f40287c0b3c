"""Log-probabilities in OpenAI's two shapes."""

from collections.abc import Sequence
from typing import Any

from muxd.messages import TokenLogprob
from muxd.text.tokenizer import Tokenizer

Scored = tuple[int, TokenLogprob]  # a token and its log-probability


def chat_logprobs(scored: Sequence[Scored], tokenizer: Tokenizer) -> dict[str, Any]:
    """``{"content": [{token, logprob, bytes, top_logprobs}], "refusal": null}``."""
    content = [
        {
            **_entry(token, score.logprob, tokenizer),
            "top_logprobs": [_entry(other, value, tokenizer) for other, value in score.top],
        }
        for token, score in scored
    ]
    return {"content": content, "refusal": None}


def text_logprobs(scored: Sequence[Scored], tokenizer: Tokenizer, offset: int) -> dict[str, Any]:
    """Parallel lists; ``offset`` is where the first token's text begins, in characters of the answer.

    As in OpenAI's and vLLM's answers, the sampled token is always among ``top_logprobs``.
    """
    tokens = [_text(token, tokenizer) for token, _ in scored]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [
        {_text(other, tokenizer): value for other, value in [*score.top, (token, score.logprob)]}
        for token, score in scored
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [score.logprob for _, score in scored],
        "top_logprobs": tops,
        "text_offset": offsets,
    }


def _entry(token: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    data = tokenizer.token_bytes(token)
    return {"token": data.decode(errors="replace"), "logprob": logprob, "bytes": list(data)}


def _text(token: int, tokenizer: Tokenizer) -> str:
    """Part of a character shows as U+FFFD; the chat shape has the bytes."""
    return tokenizer.token_bytes(token).decode(errors="replace")
