"""The jinja environment for chat templates: the ecosystem's helpers, no way out, and an end.

A template comes with a model folder, so often from strangers. Jinja's immutable sandbox keeps it from
attributes and from changing its arguments. On top, each render has a budget of steps (loop turns and calls)
and every string a bound, so that a template that multiplies its input cannot hold up the daemon for long.
"""

import json
from collections.abc import Sized
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_STEPS = 200_000
MAX_CHARS = 16 << 20
_MAX_EXPONENT = 64

_left: ContextVar[int] = ContextVar("left")  # steps the running render still has


class TemplateRefusal(TemplateError):
    """The template called ``raise_exception``: its sentence is meant for whoever sent the messages."""


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's part for training; here its body is text with a scope."""

    tags = {"generation"}  # noqa: RUF012 - name and type are jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates whose loops, calls and concatenations count against the running render."""

    intercepted_binops = frozenset({"+", "*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        self.filters["tojson"] = _tojson
        self.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Jinja's hook between syntax tree and code. Environment attributes, unlike names, cannot be set by
        the template."""
        _guard(source)
        return super()._generate(source, *args, **kwargs)

    def counted(self, items: Any) -> Any:
        """What a loop runs over, paid for in advance."""
        if isinstance(items, Sized) or not hasattr(items, "__iter__"):
            spend(len(items) if isinstance(items, Sized) else 0)
            return items
        known = []
        for item in items:
            spend(1)
            known.append(item)
        return known

    def joined(self, *parts: Any) -> str:
        """``a ~ b``."""
        text = [str(part) for part in parts]
        bound(sum(map(len, text)))
        return "".join(text)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes; numbers given to string methods are widths."""
        spend(1)
        if isinstance(getattr(__obj, "__self__", None), str):
            for number in (arg for arg in args if isinstance(arg, int)):
                bound(number)
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that make large things of small ones."""
        if operator == "**":
            bound(abs(right), _MAX_EXPONENT)
        elif isinstance(left, Sized) or isinstance(right, Sized):
            sizes = [len(side) if isinstance(side, Sized) else int(side) for side in (left, right)]
            bound(sum(sizes) if operator == "+" else sizes[0] * sizes[1])
        return super().call_binop(context, operator, left, right)


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


def _guard(source: nodes.Template) -> None:
    for loop in source.find_all(nodes.For):
        loop.iter = nodes.Call(nodes.EnvironmentAttribute("counted"), [loop.iter], [], None, None)
    for node in list(source.find_all(nodes.Node)):
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(node, field, _joined(value))
            elif isinstance(value, list):
                value[:] = [_joined(item) if isinstance(item, nodes.Concat) else item for item in value]


def _joined(concat: nodes.Concat) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute("joined"), concat.nodes, [], None, None)


def _raise(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON. Jinja's own filter escapes for HTML, which no model was trained on."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
