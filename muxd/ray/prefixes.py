"""Which prompts each host has computed lately, by the keys of their first blocks. Pure.

A guess, not the hosts' books: a host may have given up rows since, which costs it a prefill and nobody an
answer.
"""

from collections import OrderedDict
from collections.abc import Sequence


class Prefixes:
    """``most``: keys that are remembered of a host; those longest unasked go first."""

    def __init__(self, most: int = 16384):
        self._most = most
        self._hosts: dict[str, OrderedDict[bytes, None]] = {}

    def sent(self, host: str, keys: Sequence[bytes]) -> None:
        """The host computes a prompt that begins so."""
        known = self._hosts.setdefault(host, OrderedDict())
        # Backwards: of a chain its tail is forgotten first, as a match needs its head.
        for key in reversed(keys):
            known[key] = None
            known.move_to_end(key)
        while len(known) > self._most:
            known.popitem(last=False)

    def known(self, host: str, keys: Sequence[bytes]) -> int:
        """How many of the first keys it has computed."""
        known = self._hosts.get(host, OrderedDict())
        return next((count for count, key in enumerate(keys) if key not in known), len(keys))

    def forget(self, host: str) -> None:
        """Its muxd has ended, and its rows with it."""
        self._hosts.pop(host, None)
