"""docs/tutorial.md, as its reader types it: blocks marked `sh run` one after the other, beside its daemon.

Blocks without that word want a network, a GPU or minutes; that their commands exist is looked at in
tests/packaging/test_commands_in_documents.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.live import LiveDaemon, live

from muxd.config import home

pytestmark = pytest.mark.demo
PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
RUN, SERVE = "sh run", "sh serve"
BLOCKS = [(kind, text) for kind, text in re.findall(r"^```(.*)\n([\s\S]*?)^```$", PAGE, re.M) if "sh" in kind]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def typed(text: str, folder: Path, daemon: LiveDaemon | None = None) -> str:
    """What a block prints, both ways. Fails the test where one of its commands does."""
    env = {**os.environ, "PATH": PATH}
    text = text.replace("~/.cache/muxd/models", str(home() / "models"))
    if daemon is not None:
        text = text.replace("http://127.0.0.1:8000", daemon.url)
        env["MUXD_SOCKET"] = str(daemon.socket)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, f"{text}\n{done.stdout}"
    return done.stdout


@pytest.mark.timeout(1200)  # a dozen commands and three daemons, beside whatever else computes
def test_the_tutorial_works_as_it_is_written(tmp_path: Path) -> None:
    kinds = [kind for kind, _ in BLOCKS]
    start = kinds.index(SERVE)
    assert set(kinds) == {RUN, SERVE}
    assert BLOCKS[start][1] == "muxd serve --config muxd.toml\n"
    for _, text in BLOCKS[:start]:
        typed(text, tmp_path)
    with live((tmp_path / "muxd.toml").read_text(), tmp_path) as daemon:
        said = "".join(typed(text, tmp_path, daemon) for _, text in BLOCKS[start + 1 :])
        assert daemon.process.wait(60) == 0, daemon.log
    # What its text says of them.
    assert re.findall(r"^(\w+) +ready", said, re.M)[:3] == ["chat", "batch", "writer"]
    assert said.count('"finish_reason"') >= 3
    assert "chat, served;" in said
    assert "share chat" in said
    assert re.search(r"^batch +asleep", said, re.M)
    assert re.search(r" woken +batch$", said, re.M)
    (table,) = re.findall(r"^all +(\d+) +(\d+) +0 +0 ", said, re.M)
    assert table[0] == table[1] != "0"
