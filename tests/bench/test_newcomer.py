"""What a newcomer's minutes are timed by is what README says."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_readme_has_the_two_commands_that_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import newcomer

    commands = newcomer.BLOCK.findall((ROOT / "README.md").read_text())
    assert len(commands) == 2
    assert all("http://127.0.0.1:8000/v1/" in command for command in commands)
    bodies = [json.loads(re.findall(r"-d '(.*)'", command)[0]) for command in commands]
    assert all(body["stream"] for body in bodies)
    assert len({body["model"] for body in bodies}) == 2
