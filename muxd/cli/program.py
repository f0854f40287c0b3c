"""A program of commands, whose helps say what is written in the code, brackets too."""

import os
from collections.abc import Callable
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandFunctionType


class Program(typer.Typer):
    """typer's, without options that change a shell's files and without tracebacks of its own making."""

    def __init__(self, name: str, help: str) -> None:
        if f"_{name.upper()}_COMPLETE" in os.environ:  # a shell asks what could come next
            from typer._completion_classes import completion_init

            completion_init()
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
        _say_well(self)

    def get_help_option(self, ctx: Any) -> Any:
        return _switch(super().get_help_option(ctx))


class _Group(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        _say_well(self)

    def get_help_option(self, ctx: Any) -> Any:
        return _switch(super().get_help_option(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The one option that commands share may stand before the command."""
        if args and args[0].partition("=")[0] == "--socket":
            count = 1 if "=" in args[0] else 2
            option, command = args[:count], args[count:]
            args = [*command[:1], *option, *command[1:]] if command else []  # none: what there is to choose
        return super().parse_args(ctx, args)


def _say_well(command: _Command | _Group) -> None:
    """Help texts go through rich's markup, which takes the inner half of [[model]] for a style."""
    for param in command.params:
        _switch(param)
    if command.rich_markup_mode is None:
        return
    for one in (command, *command.params):
        if text := getattr(one, "help", None):
            one.help = escape(text)  # type: ignore[union-attr]  # of parameters, options and arguments have one


def _switch(param: Any) -> Any:
    """The same; one that takes no value is not said to take a <bool>."""
    if getattr(param, "is_flag", False):
        param.metavar = ""
    return param
