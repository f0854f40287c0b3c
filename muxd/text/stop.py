"""Stop strings over a stream of text: nothing that may become one is let through."""

from muxd.errors import BadRequest

MAX_STOP_CHARS = 1024


class StopStrings:
    """Knuth-Morris-Pratt per stop string, so the cost per character does not depend on the text.

    The hit is the stop string that completes first, the longest of those that complete together; so the
    result does not depend on how the text was cut into pushes.
    """

    def __init__(self, stops: list[str]):
        """Raises BadRequest for an empty or an overlong stop string."""
        for stop in stops:
            if not 0 < len(stop) <= MAX_STOP_CHARS:
                raise BadRequest(
                    f"a stop string must have 1 to {MAX_STOP_CHARS} characters, not {len(stop)}", param="stop"
                )
        self._stops = stops
        self._firsts = frozenset(stop[0] for stop in stops)
        self._failures = [_failure(stop) for stop in stops]
        self._matched = [0] * len(stops)  # how much of each stop string the text so far ends with
        self._held = ""
        self.found: str | None = None  # the stop string that was reached

    def push(self, text: str) -> tuple[str, bool]:
        """Text that can be shown now, and whether a stop string was reached. After a hit, nothing more."""
        if self.found is not None:
            return "", True
        if not self._held and self._firsts.isdisjoint(text):  # the usual case, at the speed of C
            return text, False
        buffer = self._held + text
        for position, character in enumerate(text, len(self._held) + 1):
            done = self._step(character)
            if done:
                self.found, self._held = buffer[position - done : position], ""
                return buffer[: position - done], True
        keep = len(buffer) - max(self._matched, default=0)
        self._held = buffer[keep:]
        return buffer[:keep], False

    def flush(self) -> str:
        """At the end of the stream: what was held back, for it did not become a stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def _step(self, character: str) -> int:
        """Length of the longest stop string that ends here, 0 if none."""
        done = 0
        for i, stop in enumerate(self._stops):
            length = self._matched[i]
            while length and stop[length] != character:
                length = self._failures[i][length - 1]
            if stop[length] == character:
                length += 1
            self._matched[i] = length
            if length == len(stop):
                done = max(done, length)
        return done


def _failure(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        if stop[i] == stop[length]:
            length += 1
        table[i] = length
    return table
