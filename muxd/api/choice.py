"""One sequence on its way from tokens to text: detokenising, stop strings, what the text says, the tokens'
log-probabilities.

Pure apart from closing its stream when a stop string is complete. One per choice, used by one task.
"""

from collections.abc import Sequence

from msgspec import Struct

from muxd.api.logprobs import PromptScored, Scored
from muxd.engine.request import Delta, Request
from muxd.engine.stream import TokenStream
from muxd.text.detokenize import Detokenizer
from muxd.text.sayings import Content, Saying
from muxd.text.speech import Speech
from muxd.text.stop import StopStrings


class Piece(Struct):
    """What one wake-up adds to the answer: safe to show, never part of a stop string."""

    sayings: Sequence[Saying]
    tokens: list[int]
    scored: list[Scored]
    finish: str | None  # "stop", "length" or "tool_calls"
    stopped_by: str | None = None
    thinking: int = 0  # tokens of it that are reasoning


class Choice:
    """``take`` every delta of ``stream`` in order; after a piece with ``finish`` there are no more."""

    def __init__(
        self,
        index: int,
        request: Request,
        stream: TokenStream,
        detokenizer: Detokenizer,
        stops: list[str],
        speech: Speech | None = None,
    ):
        """``speech``: where the text is more than content."""
        self.index = index
        self.stream = stream
        self._detokenizer = detokenizer
        self._speech = speech
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
        return self._piece(text, delta, len(delta.tokens), delta.finish)

    def _piece(
        self, text: str, delta: Delta, taken: int, finish: str | None, stopped_by: str | None = None
    ) -> Piece:
        speech = self._speech
        said: list[Saying] = [Content(text)] if text else []
        thinking = 0
        if speech is not None:
            thinking = taken if speech.thinking else 0
            said = [*speech.push(text), *(speech.finish() if finish else ())]
            finish = "tool_calls" if speech.called and finish == "stop" else finish
        return Piece(said, delta.tokens[:taken], _scored(delta, taken), finish, stopped_by, thinking)

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
                return self._piece(text, delta, taken, "stop", stops.found)
        finish: str | None = delta.finish
        hit = False
        if finish:
            more, hit = self._guard(self._detokenizer.finish(), stops)
            text += more if hit else more + stops.flush()
            finish = "stop" if hit else finish
        return self._piece(text, delta, len(delta.tokens), finish, stops.found if hit else None)

    def _guard(self, text: str, stops: StopStrings) -> tuple[str, bool]:
        """Stop strings count only once ``min_tokens`` are there."""
        if self._count < self._min_tokens:
            return text, False
        return stops.push(text)


def _scored(delta: Delta, count: int) -> list[Scored]:
    if delta.logprobs is None:
        return []
    return list(zip(delta.tokens[:count], delta.logprobs[:count], strict=True))
