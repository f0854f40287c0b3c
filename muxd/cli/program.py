"""A program of commands, whose helps say what is written in the code, brackets too."""

from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandFunctionType


class Program(typer.Typer):
    """typer's, without shell completion and without tracebacks of its own making."""

    def __init__(self, name: str, help: str) -> None:
        super().__init__(
            name=name,
            help=help,
            cls=_Group,
            no_args_is_help=True,
            add_completion=False,
            pretty_exceptions_enable=False,
        )

    def command(
        self, name: str | None = None, **settings: Any
    ) -> Callable[[CommandFunctionType], CommandFunctionType]:
        return super().command(name, cls=_Command, **settings)


class _Command(TyperCommand):
    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        _keep_brackets(self)


class _Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _keep_brackets(self)


def _keep_brackets(command: _Command | _Group) -> None:
    """Help texts go through rich's markup, which takes the inner half of [[model]] for a style."""
    if command.rich_markup_mode is None:
        return
    for one in (command, *command.params):
        if text := getattr(one, "help", None):
            one.help = escape(text)  # type: ignore[union-attr]  # of parameters, options and arguments have one
