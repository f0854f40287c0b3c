"""What one render of a template may cost: steps, and a bound on every size.

A step is a loop turn, a call, a filter, or an amount of text or items to read or make. Bounds are checked
before anything is made. They hold against templates that multiply, not against every way to be slow.
"""

import re
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MAX_STEPS = 1_000_000  # Gemma 4's template takes half a step for every pair of messages
MAX_CHARS = 16 << 20
MAX_BITS = 4096  # of an integer
_READ = 4 << 10  # characters a step: to look for what nearly fits everywhere takes 10 us
_MADE = 64 << 10
_ITEMS = 256
_FIELD = re.compile(r"%(?:\([^()%]*\))?[-+ #0-9.*]*|\{[^{}]*(?:\{[^}]*)?")
_NUMBER = re.compile(r"\d{1,18}")

_left: ContextVar[int] = ContextVar("left")  # steps the running render still has


def start_budget() -> None:
    """Call before each render."""
    _left.set(MAX_STEPS)


def spend(steps: int) -> None:
    """Raises SecurityError when the render has used its steps."""
    left = _left.get() - steps
    _left.set(left)
    if left < 0:
        raise SecurityError(f"the template takes more than {MAX_STEPS} steps")


def bound(size: int, limit: int = MAX_CHARS) -> None:
    """Raises SecurityError for a size above the limit."""
    if size > limit:
        raise SecurityError(f"the template asks for a size of {size}, above {limit}")


def read(*values: Any) -> None:
    """Pay for work that looks at all of these values."""
    spend(1 + sum(map(_steps, values)))


def make(size: int) -> None:
    """Pay for a text or list of at most ``size``, about to be made."""
    bound(size)
    spend(size // _MADE)


def join(separator: str, parts: Iterable[Any]) -> str:
    """``separator.join(parts)`` of anything, paid for."""
    texts = [str(part) for part in parts]
    make(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def grown(name: str, text: str, given: Sequence[Any]) -> int:
    """At most how long a text the string method or filter ``name`` makes of ``text`` and its arguments."""
    given = [*given, *_inside(given)]
    numbers = sum(abs(value) for value in given if isinstance(value, int))
    longest = max((len(value) for value in given if isinstance(value, str)), default=0)
    match name:
        case "replace":
            old, new = (*given, "", "")[:2]
            return len(text) + text.count(str(old)) * len(str(new))
        case "format" | "format_map":
            return formatted(text, given)
        case "indent" | "expandtabs":
            return len(text) + (1 + text.count("\n") + text.count("\t")) * (8 + numbers + longest)
        case "join":
            lengths = sum(len(value) for value in given if isinstance(value, str))
            return lengths + len(text) * (1 + len(given) + longest)
        case "translate" | "wordwrap":
            return len(text) * (1 + longest)
        case "center" | "ljust" | "rjust" | "zfill":
            return len(text) + numbers
    return len(text)


def formatted(form: str, values: Iterable[Any]) -> int:
    """At most how long ``form`` gets with ``values`` in its fields, in either notation."""
    fields = _FIELD.findall(form)
    values = list(values)
    widths = sum(int(number) for field in fields for number in _NUMBER.findall(field))
    longest = max((len(value) for value in values if isinstance(value, str)), default=0)
    chosen = sum("*" in field or "{" in field[1:] for field in fields)  # widths that are values themselves
    number = max((abs(value) for value in values if isinstance(value, int)), default=0)
    return len(form) + widths + len(fields) * longest + chosen * number


def _inside(values: Sequence[Any]) -> list[Any]:
    """What the lists and mappings among ``values`` hold."""
    held: list[Any] = []
    for value in values:
        if isinstance(value, dict | list | tuple):
            held += value.values() if isinstance(value, dict) else value
    return held


def _steps(value: Any) -> int:
    if isinstance(value, str):
        return len(value) // _READ
    return len(value) // _ITEMS if isinstance(value, list | tuple | dict | range) else 0
