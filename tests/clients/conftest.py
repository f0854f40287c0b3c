"""A live daemon with the demo's chat model, for clients in an environment that knows no muxd.

``MUXD`` is the command to start; `make test-clients` sets it.
"""

import os
import re
import select
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the daemon answers, once its model is ready."""
    folder = tmp_path_factory.mktemp("daemon")
    wide, known = _new_key("clients")
    narrow, other = _new_key("narrow")
    (folder / "keys.toml").write_text(f"{wide}actions = true\n{narrow}max_concurrency = 1\n")
    os.environ |= {"MUXD_TEST_KEY": known, "MUXD_TEST_NARROW_KEY": other}
    home = Path(os.environ.get("MUXD_HOME") or Path.home() / ".cache" / "muxd")
    config = folder / "muxd.toml"
    config.write_text(
        '[server]\nkeys = "keys.toml"\n[pool]\nbytes = "512M"\n'
        f'[[model]]\nname = "{MODEL}"\npath = "{home / "models" / MODEL}"\naliases = ["claude-demo"]\n'
        # So that the same is said twice: with bfloat16 a prompt that was cached can decide another way.
        'dtype = "float32"\nprefix_cache = false\npooling = "last"\nsampling = { temperature = 0.0 }\n'
    )
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(str(folder / "n"))
    command = [_muxd(), "serve", "--config", str(config), "--port", "0", "--socket", str(folder / "s")]
    with (folder / "log").open("w") as log:
        daemon = subprocess.Popen(
            command,
            env=os.environ | {"NOTIFY_SOCKET": str(folder / "n"), "STATE_DIRECTORY": str(folder)},
            stdout=log,
            stderr=log,
        )
    try:
        yield _address(notify, daemon, folder / "log")
    finally:
        daemon.terminate()
        assert daemon.wait(60) == 0, (folder / "log").read_text()
        notify.close()


@pytest.fixture(scope="session")
def key(url: str) -> str:
    return os.environ["MUXD_TEST_KEY"]


@pytest.fixture(scope="session")
def narrow_key(url: str) -> str:
    """Of a client that may ask for one thing at a time."""
    return os.environ["MUXD_TEST_NARROW_KEY"]


def _new_key(name: str) -> tuple[str, str]:
    """Its lines in the file, and itself."""
    made = subprocess.run([_muxd(), "new-key", name], capture_output=True, text=True, check=True)
    return made.stdout, made.stderr.rsplit(maxsplit=1)[-1]


def _muxd() -> str:
    return os.environ.get("MUXD") or str(Path(__file__).parents[2] / ".venv" / "bin" / "muxd")


def _address(notify: socket.socket, daemon: subprocess.Popen[Any], log: Path) -> str:
    with open(os.pidfd_open(daemon.pid), closefd=True) as ended:
        watched: list[Any] = [notify, ended]
        while True:
            readable, _, _ = select.select(watched, [], [], 120)
            assert readable, f"not ready:\n{log.read_text()}"
            assert ended not in readable, f"the daemon ended:\n{log.read_text()}"
            found = re.search(r"READY=1(?s:.*)(http://\S+)", notify.recv(4096).decode())
            if found:
                return found[1]
