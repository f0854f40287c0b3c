"""What the doors hand to the engine: plain data, already tokenised and checked."""

from typing import Literal

from msgspec import Struct

from muxd.messages import Pooling, Sampling, TokenLogprob

Finish = Literal["stop", "length"]


class Request(Struct, frozen=True):
    """One sequence to generate. ``n`` choices of one HTTP request are ``n`` of these."""

    id: str  # unique, shown to people ("chatcmpl-..." plus choice index)
    model: str  # whose lane it goes through
    prompt: list[int]
    max_tokens: int  # 0: only what the prompt says of itself (``Sampling.prompt_logprobs``)
    sampling: Sampling
    eos: frozenset[int]  # token ids that end the sequence; empty with ignore_eos
    http_id: str = ""  # x-request-id of the HTTP request, by which `muxctl why` finds it too
    pooling: Pooling = ""  # the prompt is to be embedded, and that is all
    key: str = ""  # name of the key that it came with: those without one are one class
    weight: float = 1.0  # of that key beside others, where requests wait
    adapter: int = 0  # of ``model``'s, by number; 0: none
    asked: str = ""  # the adapter's own name

    @property
    def name(self) -> str:
        """What it is for, as clients call it: no two of these share a computed row."""
        return self.asked or self.model


class Delta(Struct, frozen=True):
    """What one wake-up of a stream brings: new tokens, and at the end why it ended."""

    tokens: list[int]
    logprobs: list[TokenLogprob] | None = None  # one per token, where asked for
    finish: Finish | None = None  # set on the last delta only
