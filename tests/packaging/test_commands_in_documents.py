"""Every command of ours that a document tells people to type exists, with the options it is typed with."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from muxd.cli.muxctl import app as muxctl
from muxd.cli.muxd import app as muxd

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAMS: dict[str, Any] = {
    "muxctl": typer.main.get_command(muxctl),
    "muxd": typer.main.get_command(muxd),
}
BLOCKS = re.compile(r"^```[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`((?:sudo )?(?:\.venv/bin/)?(?:muxctl|muxd) [^`\n]+)`")


def typed(page: str) -> list[list[str]]:
    """The words of each command, from its program on."""
    lines = [line for block in BLOCKS.findall(page) for line in block.splitlines()]
    lines += INLINE.findall(BLOCKS.sub("", page))
    found = []
    for line in lines:
        for part in re.split(r"&&|\|(?= )", line.split(" #")[0]):
            words = part.replace("...", "").split()
            at = next((i for i, word in enumerate(words) if Path(word).name in PROGRAMS), None)
            if at in (0, 1) and (at == 0 or words[0] in ("sudo", "exec")):
                found.append([Path(words[at]).name, *words[at + 1 :]])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_people_are_told_to_type_is_there(page: Path) -> None:
    wrong = []
    for program, *words in typed(page.read_text()):
        commands = PROGRAMS[program].commands
        names = [word for word in words if not word.startswith("-")]
        command = next((name for name in names if name in commands), None)
        if command is None:
            if names and re.fullmatch(r"[a-z][a-z-]+", names[0]):
                wrong.append(f"{program} {names[0]}")
            continue
        options = {opt for param in commands[command].params for opt in param.opts} | {"--help"}
        given = [word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)]
        wrong += [f"{program} {command} {one}" for one in given if one not in options]
    assert wrong == []


def test_the_walk_finds_what_it_looks_for() -> None:
    found = typed((ROOT / "docs" / "operations.md").read_text())
    assert ["muxctl", "drain"] in found
    assert ["muxctl", "install-service", "--user"] in found
    assert shlex.join(["muxctl", "quota", "smollm2", "--min", "20%"]) in map(shlex.join, found)
