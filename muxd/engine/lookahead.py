"""How much of an answer an admission leaves room for. Pure.

Too little, and sequences grow into each other: whoever is preempted is computed again, which is waste. Too
much, and the device serves fewer than it could. Nobody knows the length of an answer, so the waste decides:
while a large part of what is computed was computed before, the look-ahead doubles; while hardly any was, it
shrinks again towards ``look_ahead`` of muxd.toml. What a model's answers were seen to take is enough for it.
"""

from muxd.engine.lane import Lane

_WINDOW = 64  # answers and preemptions from one look to the next
_HIGH, _LOW = 0.08, 0.02  # of the tokens computed, those that a preemption has thrown away
_UP, _DOWN = 2.0, 1.5
_MOST = 4096


class LookAhead:
    """Of one unit. ``least``: tokens, where nothing is wasted."""

    def __init__(self, least: int):
        self._least = least
        self._tokens = float(least)
        self._computed = self._wasted = self._seen = 0

    def tokens(self, lane: Lane) -> int:
        """Of an answer that has not begun, or of what may still come of one that has."""
        if self._tokens <= self._least or not lane.answer_tokens:
            return int(self._tokens)
        return int(max(self._least, min(self._tokens, lane.answer_tokens)))

    def computed(self, tokens: int) -> None:
        self._computed += tokens

    def wasted(self, tokens: int) -> bool:
        """A sequence that had so many computed was preempted. True: the look-ahead is another now."""
        self._wasted += tokens
        return self._look()

    def answered(self, lane: Lane, tokens: int) -> bool:
        """A sequence has ended with so many. True: the look-ahead is another now."""
        lane.learn_answer(tokens)
        return self._look()

    def _look(self) -> bool:
        self._seen += 1
        if self._seen < _WINDOW:
            return False
        part, before = self._wasted / max(1, self._computed), self._tokens
        if part > _HIGH:
            self._tokens = min(max(1.0, self._tokens) * _UP, max(_MOST, self._least))
        elif part < _LOW:
            self._tokens = max(self._tokens / _DOWN, self._least)
        self._computed = self._wasted = self._seen = 0
        return self._tokens != before
