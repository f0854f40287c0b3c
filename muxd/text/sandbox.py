"""The jinja environment for chat templates: the ecosystem's helpers, no way out, and an end.

A template comes with a model folder, so often from strangers. Jinja's immutable sandbox keeps it from
attributes and from changing its arguments. On top, what multiplies (loops, calls, filters, operators, blocks)
is paid for out of the budget of the running render, and nothing is worked out while a template is loaded.
"""

import json
from collections.abc import Callable, Iterable, Sized
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn, cast

from jinja2 import nodes, pass_environment
from jinja2.compiler import CodeGenerator
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from muxd.text.budget import MAX_BITS, bound, formatted, grown, join, make, read, spend

_MAX_INDENT = 64
_COUNTS = frozenset({"batch", "slice", "round"})  # filters that do as much work as their number says


class TemplateRefusal(TemplateError):
    """The template called ``raise_exception``: its sentence is meant for whoever sent the messages."""


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's part for training; here its body is text with a scope."""

    tags = {"generation"}  # noqa: RUF012 - name and type are jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _NoFolding(CodeGenerator):
    """Only text between tags is known at load: there is no budget yet for working out more."""

    def _output_child_to_const(self, node: nodes.Expr, *args: Any) -> str:
        if not isinstance(node, nodes.TemplateData):
            raise nodes.Impossible
        return super()._output_child_to_const(node, *args)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles templates whose work counts against the running render."""

    code_generator_class = _NoFolding
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        extensions = [_Generation, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=extensions)
        own = {"tojson": _tojson, "join": _join, "sum": _sum}
        self.filters = _all_metered(self.filters | own)
        self.tests = _all_metered(self.tests)
        self.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now}
        del self.globals["lipsum"]

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        """Jinja's hook between syntax tree and code. Environment attributes, unlike names, cannot be set by
        the template."""
        _guard(source)
        return super()._generate(source, *args, **kwargs)

    def concat(self, parts: Iterable[str]) -> str:
        """The text of a macro, or of a block that is set, filtered or passed on."""
        return join("", parts)

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

    def searched(self, value: Any) -> Any:
        """What ``in`` looks through, or a slice copies."""
        read(value)
        return value

    def joined(self, *parts: Any) -> str:
        """``a ~ b``."""
        return join("", parts)

    def call(self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Every call a template makes."""
        method = getattr(__obj, "__wrapped__", __obj)  # jinja wraps str.format
        owner = getattr(method, "__self__", None)
        read(owner, *args, *kwargs.values())
        if isinstance(owner, str):
            if method.__name__ == "join":
                args = tuple(map(self.counted, args))
            make(grown(method.__name__, owner, (*args, *kwargs.values())))
        return super().call(__context, __obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """The operators that make large things of small ones."""
        spend(1)
        if isinstance(left, int) and isinstance(right, int):
            _bound_bits(operator, left, right)
        elif operator == "%" and isinstance(left, str):
            values = (
                right.values() if isinstance(right, dict) else right if isinstance(right, tuple) else [right]
            )
            make(formatted(left, values))
        elif operator == "*":
            make(_length(left) * _number(right) + _length(right) * _number(left))
        elif operator == "+":
            make(_length(left) + _length(right))
        return super().call_binop(context, operator, left, right)


def _all_metered(table: dict[str, Any]) -> dict[str, Any]:
    return {name: _metered(name, work) for name, work in table.items()}


def _metered(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """A filter or test that pays for what it reads and makes."""
    first = 1 if hasattr(work, "jinja_pass_arg") else 0

    @wraps(work)  # keeps jinja's mark that it wants the environment
    def metered(*args: Any, **kwargs: Any) -> Any:
        named = [kwargs[key] for key in sorted(kwargs, reverse=True)]  # replace: old before new
        value, *given = (*args[first:], *named)
        read(value, *given)
        if name in _COUNTS:
            spend(sum(abs(number) for number in given if isinstance(number, int)))
        else:
            make(grown(name, value if isinstance(value, str) else "", given))
        return work(*args, **kwargs)

    return metered


def _bound_bits(operator: str, left: int, right: int) -> None:
    if operator == "*":
        bound(left.bit_length() + right.bit_length(), MAX_BITS)
    elif operator == "**":
        bound(left.bit_length() * abs(right), MAX_BITS)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple) else 0


def _number(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


def _guard(source: nodes.Template) -> None:
    for loop in source.find_all(nodes.For):
        loop.iter = _through("counted", loop.iter)
    for operand in source.find_all(nodes.Operand):
        if operand.op in ("in", "notin"):
            operand.expr = _through("searched", operand.expr)
    for item in source.find_all(nodes.Getitem):
        if isinstance(item.arg, nodes.Slice):
            item.node = _through("searched", item.node)
    for node in list(source.find_all(nodes.Node)):
        for field, value in node.iter_fields():
            if isinstance(value, nodes.Concat):
                setattr(node, field, _through("joined", *value.nodes))
            elif isinstance(value, list):
                value[:] = [
                    _through("joined", *item.nodes) if isinstance(item, nodes.Concat) else item
                    for item in value
                ]


def _through(name: str, *values: nodes.Node) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), cast(list[nodes.Expr], list(values)), [], None, None)


def _raise(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(form: str) -> str:
    bound(len(form), _MAX_INDENT)
    return datetime.now().strftime(form)


@pass_environment
def _join(environment: TemplateEnvironment, value: Any, d: str = "", attribute: str | None = None) -> str:
    items = environment.counted(value)
    return join(str(d), items if attribute is None else map(make_attrgetter(environment, attribute), items))


@pass_environment
def _sum(environment: TemplateEnvironment, value: Any, attribute: str | None = None, start: Any = 0) -> Any:
    items = environment.counted(value)
    total = start
    for item in items if attribute is None else map(make_attrgetter(environment, attribute), items):
        read(total, item)
        make(_length(total) + _length(item))
        total = total + item
    return total


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON. Jinja's own filter escapes for HTML, which no model was trained on."""
    bound(len(indent) if isinstance(indent, str) else indent or 0, _MAX_INDENT)
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
