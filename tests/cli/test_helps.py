"""`--help` says what is written in the code: what stands in brackets is text, not markup."""

import inspect
import re
from collections.abc import Iterator
from typing import Annotated, Any, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from muxd.cli.muxctl import app as muxctl
from muxd.cli.muxd import app as muxd
from muxd.cli.program import Program

PROGRAMS = {"muxctl": muxctl, "muxd": muxd}
COMMANDS = [(name, one) for name, app in PROGRAMS.items() for one in app.registered_commands]
BRACKETS = re.compile(r"\[\S*?[^\s\[]+\]+")


def shown(app: typer.Typer, *args: str) -> str:
    result = CliRunner().invoke(app, [*args, "--help"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    return result.output


def texts(command: Any) -> Iterator[str]:
    """What the code says of a command: its docstring and each option's help."""
    yield inspect.getdoc(command) or ""
    for hint in get_type_hints(command, include_extras=True).values():
        yield from (getattr(one, "help", None) or "" for one in getattr(hint, "__metadata__", ()))


@pytest.mark.parametrize(("program", "command"), COMMANDS, ids=lambda one: getattr(one, "name", None))
def test_every_bracket_is_in_the_help(program: str, command: Any) -> None:
    callback = command.callback
    help = shown(PROGRAMS[program], command.name or callback.__name__)
    said = [found for text in texts(callback) for found in BRACKETS.findall(text)]
    assert [found for found in said if found not in help] == []
    if callback.__name__ in ("plan", "workload"):
        assert "[[model]]" in said, "the walk finds what it looks for"


def test_whatever_looks_like_markup_is_text() -> None:
    app = Program("x", "Of [red]all[/red] [[table]]s.")

    @app.command()
    def one(
        option: Annotated[str, typer.Option(help="A [bold]key[/] of [[model]].")] = "",
        argument: Annotated[str, typer.Argument(help="A \\ and [/].")] = "",
    ) -> None:
        """First [link=x]line[/link].

        [[model]] name = "a"
        """

    @app.command(name="two")
    def another() -> None:
        """Second."""

    help = shown(app, "one")
    for text in (
        "First [link=x]line[/link].",
        '[[model]] name = "a"',
        "A [bold]key[/] of [[model]].",
        "A \\ and [/].",
    ):
        assert text in help
    assert "Of [red]all[/red] [[table]]s." in shown(app)
    assert "First [link=x]line[/link]." in shown(app)
