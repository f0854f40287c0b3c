"""Markers in a text that arrives in pieces. Pure."""

from collections.abc import Sequence


class Seeker:
    """Finds the marker that is complete first, the longest of those that end together: the result does not
    depend on how the text was cut."""

    def __init__(self, markers: Sequence[str]):
        self._markers = markers
        self._longest = max(map(len, markers), default=0)
        self._firsts = frozenset(marker[0] for marker in markers)
        self._held = ""

    def push(self, text: str) -> tuple[str, str, str]:
        """The text before the marker, or what is sure to be no part of one; the marker or ""; the rest."""
        if not self._held and self._firsts.isdisjoint(text):
            return text, "", ""
        text, self._held = self._held + text, ""
        found = [(at + len(one), at, one) for one in self._markers if (at := text.find(one)) >= 0]
        if found:
            end, at, marker = min(found)
            return text[:at], marker, text[end:]
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], "", ""

    def flush(self) -> str:
        """What was held back, for it did not become a marker."""
        held, self._held = self._held, ""
        return held

    def _beginning(self, text: str) -> int:
        """How much of the end of ``text`` could be the beginning of a marker."""
        for length in range(min(self._longest - 1, len(text)), 0, -1):
            end = text[-length:]
            if any(marker.startswith(end) for marker in self._markers):
                return length
        return 0
