"""Tokens on their way to one waiting client.

The engine's driver is the only writer, one HTTP handler the only reader. Whatever arrived since the last
wake-up is handed over in one ``Delta``, so a slow reader costs one wake-up and not one per token.
"""

import asyncio
from collections.abc import Callable

from muxd.engine.request import Delta, Finish
from muxd.errors import MuxdError
from muxd.messages import PromptScores, TokenLogprob


class TokenStream:
    """Asynchronous iterator of ``Delta``; ends after the delta with ``finish``, or raises the MuxdError
    that ended the request.

    The reader that goes away must call ``close``: it is idempotent, and frees the sequence's rows after the
    running step. A reader that has what it wants (a stop string) calls ``close(served=True)``. ``on_close``
    is called at most once, and never when the engine has ended the sequence itself.
    """

    def __init__(self, on_close: Callable[[bool], None], queued: Callable[[], float | None] = lambda: None):
        """``queued``: seconds until it was first computed; None: it has not been yet."""
        self.cached_tokens = 0  # of the prompt, found computed when the sequence was admitted
        # By position of the prompt, where asked for: all of them are there before the first token is.
        self.prompt_scores: dict[int, tuple[TokenLogprob, int]] = {}
        self.vector = b""  # float32, of a prompt that is embedded: there with the end
        self._on_close = on_close
        self.queued = queued
        self._wake = asyncio.Event()
        self._tokens: list[int] = []
        self._logprobs: list[TokenLogprob] = []
        self._finish: Finish | None = None
        self._error: MuxdError | None = None
        self._ended = False

    def __aiter__(self) -> "TokenStream":
        return self

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        await self._wake.wait()
        self._wake.clear()
        if self._ended:  # closed by another task while this one waited
            raise StopAsyncIteration
        if self._tokens or self._finish:
            return self._take()
        self._ended = True
        if self._error:
            raise self._error
        raise StopAsyncIteration

    def _take(self) -> Delta:
        delta = Delta(self._tokens, self._logprobs or None, self._finish)
        self._tokens, self._logprobs = [], []
        self._ended = self._finish is not None
        if self._error:
            self._wake.set()  # tokens first, the error with the next wake-up
        return delta

    def moved(self, on_close: Callable[[bool], None]) -> None:
        """Engine side: another unit has taken the sequence over."""
        self._on_close = on_close

    def put(self, token: int, logprob: TokenLogprob | None = None) -> None:
        """Engine side: one more token. Dropped when nobody reads any more."""
        if self._ended:
            return
        self._tokens.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        self._wake.set()

    def score(self, scored: PromptScores) -> None:
        """Engine side: more of the prompt. What is computed again is told again."""
        pairs = zip(scored.scores, scored.ranks, strict=True)
        self.prompt_scores.update(enumerate(pairs, scored.first))

    def end(self, finish: Finish) -> None:
        """Engine side: the sequence is complete."""
        self._finish = finish
        self._wake.set()

    def fail(self, error: MuxdError) -> None:
        """Engine side: the sequence cannot go on."""
        self._error = error
        self._wake.set()

    def close(self, *, served: bool = False) -> None:
        """Reader side: no more wanted. ``served`` tells a satisfied reader from one that went away."""
        if self._ended:
            return
        self._ended = True
        self._wake.set()
        if self._finish is None and self._error is None:
            self._on_close(served)
