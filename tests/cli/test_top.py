"""``muxctl top`` over the real local door: the same feed, for people and for programs."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console
from support.scripted_daemon import PICTURE, scripted
from typer.testing import CliRunner

from muxd.cli.muxctl import app
from muxd.cli.top import render
from muxd.watch.changes import apply
from muxd.watch.schemas import Change, Picture


def shown(picture: Picture, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(render(picture, width))
    return out.getvalue()


def test_once_for_people(tmp_path: Path) -> None:
    with scripted(tmp_path / "socket"):
        done = CliRunner().invoke(app, ["top", "--once", "--socket", str(tmp_path / "socket")])
    assert done.exit_code == 0
    for word in ("smol_lm.2", "gemma", "cuda:0", "loading 40%", "served", "█", "▒", "░", "·"):
        assert word in done.output


def test_the_feed_for_programs(tmp_path: Path) -> None:
    with scripted(tmp_path / "socket"):
        done = CliRunner().invoke(app, ["top", "--json", "--socket", str(tmp_path / "socket")])
    first, second = done.output.splitlines()
    picture = msgspec.json.decode(first, type=Picture)
    assert picture == PICTURE
    assert apply(picture, msgspec.json.decode(second, type=Change)).models.keys() == {"smol_lm.2"}


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_pool_is_as_wide_as_the_terminal_and_nothing_is_wider(width: int) -> None:
    lines = shown(PICTURE, width).splitlines()
    assert max(map(len, lines)) <= width
    (bar,) = [line for line in lines if line.startswith("█")]
    assert len(bar) == width
    assert {sign: bar.count(sign) / width for sign in "█▒░·"} == pytest.approx(
        {"█": 0.2, "▒": 0.05, "░": 0.1, "·": 0.65}, abs=0.02
    )


def test_without_a_daemon_it_says_so(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["top", "--socket", str(tmp_path / "nothing")])
    assert done.exit_code == 1
