"""One sequence on its way from tokens to text: detokenising, stop strings, the tokens' log-probabilities.

Pure apart from closing its stream when a stop string is complete. One per choice, used by one task.
"""

from msgspec import Struct

from muxd.engine.request import Delta, Finish, Request
from muxd.engine.stream import TokenStream
from muxd.messages import TokenLogprob
from muxd.text.detokenize import Detokenizer
from muxd.text.stop import StopStrings

Scored = tuple[int, TokenLogprob]  # a token and its log-probability
# A token of a prompt, its log-probability, and how many had more, plus one; the first has none.
PromptScored = tuple[int, TokenLogprob | None, int]


class Piece(Struct):
    """What one wake-up adds to the answer: safe to show, never part of a stop string."""

    text: str
    tokens: list[int]
    scored: list[Scored] | None
    finish: Finish | None


class Choice:
    """``take`` every delta of ``stream`` in order; after a piece with ``finish`` there are no more."""

    def __init__(
        self, index: int, request: Request, stream: TokenStream, detokenizer: Detokenizer, stops: list[str]
    ):
        self.index = index
        self.stream = stream
        self._detokenizer = detokenizer
        self._stops = StopStrings(stops) if stops else None
        self._min_tokens = request.sampling.min_tokens
        self._eos = request.eos
        self._count = 0
        self._prompt = request.prompt

    def prompt_scores(self) -> list[PromptScored]:
        """Once there is a delta."""
        known = self.stream.prompt_scores
        return [(token, *known.get(at, (None, 0))) for at, token in enumerate(self._prompt)]

    def take(self, delta: Delta) -> Piece:
        """The delta's tokens as text."""
        if self._stops is not None:
            return self._until_stop(delta, self._stops)
        text = self._detokenizer.push(self._shown(delta))
        if delta.finish:
            text += self._detokenizer.finish()
        return Piece(text, delta.tokens, _scored(delta, len(delta.tokens)), delta.finish)

    def _shown(self, delta: Delta) -> list[int]:
        """Without the token that ended the sequence, should the engine hand it over."""
        tokens = delta.tokens
        return tokens[:-1] if delta.finish == "stop" and tokens and tokens[-1] in self._eos else tokens

    def _until_stop(self, delta: Delta, stops: StopStrings) -> Piece:
        """Token by token, so that what is counted does not depend on how tokens fell into deltas."""
        text = ""
        for taken, token in enumerate(self._shown(delta), 1):
            self._count += 1
            more, hit = self._guard(self._detokenizer.push([token]), stops)
            text += more
            if hit:
                self.stream.close(served=True)
                return Piece(text, delta.tokens[:taken], _scored(delta, taken), "stop")
        finish = delta.finish
        if finish:
            more, hit = self._guard(self._detokenizer.finish(), stops)
            text += more if hit else more + stops.flush()
            finish = "stop" if hit else finish
        return Piece(text, delta.tokens, _scored(delta, len(delta.tokens)), finish)

    def _guard(self, text: str, stops: StopStrings) -> tuple[str, bool]:
        """Stop strings count only once ``min_tokens`` are there."""
        if self._count < self._min_tokens:
            return text, False
        return stops.push(text)


def _scored(delta: Delta, count: int) -> list[Scored] | None:
    if delta.logprobs is None:
        return None
    return list(zip(delta.tokens[:count], delta.logprobs[:count], strict=True))
