"""`muxd new-key`: what goes into the file, and what is shown once."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from muxd.api.keys import Keys
from muxd.cli.muxd import app
from muxd.clock import VirtualClock


def test_its_table_is_for_the_file_and_the_key_for_the_eyes(tmp_path: Path) -> None:
    made = CliRunner().invoke(app, ["new-key", "alice"])
    assert made.exit_code == 0
    secret = made.stderr.rsplit(maxsplit=1)[-1]
    assert secret.startswith("sk-muxd-")
    assert secret not in made.stdout
    file = tmp_path / "keys.toml"
    file.write_text(made.stdout)
    found = Keys(file, VirtualClock()).find(secret)
    assert found is not None
    assert (found.name, found.actions, found.max_concurrency) == ("alice", False, 0)


@pytest.mark.parametrize("name", ["", "a b", 'a"', "x" * 65])
def test_a_name_that_no_log_line_should_have(name: str) -> None:
    made = CliRunner().invoke(app, ["new-key", name])
    assert made.exit_code == 78
    assert "name" in made.stderr
