"""From the hub to an answer in one command, and away again, but not while it is served or named."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
from support.hub_mirror import mirror
from support.live import live
from support.tiny import tiny_served


def test_a_model_is_pulled_loaded_kept_and_deleted(tmp_path: Path) -> None:
    hosted = tiny_served(tmp_path / "hosted")
    files = {file.name: file.read_bytes() for file in hosted.iterdir()}
    home, folder = tmp_path / "home", tmp_path / "home" / "models" / "llama"
    env = {**os.environ, "MUXD_HOME": str(home), "HF_HOME": str(tmp_path / "hf")}

    with (
        mirror({"tiny/llama": files}) as hub,
        live(f'[pool]\nbytes = "8M"\n[[model]]\nname = "a"\npath = "{hosted}"\n', tmp_path) as daemon,
    ):

        def muxctl(*arguments: str) -> tuple[int, str, str]:
            done = subprocess.run(
                [sys.executable, "-m", "muxd.cli.muxctl", *arguments, "--socket", str(daemon.socket)],
                capture_output=True, text=True, stdin=subprocess.DEVNULL, env={**env, "HF_ENDPOINT": hub.url},
            )  # fmt: skip
            return done.returncode, done.stdout, done.stderr

        assert muxctl("pull", "tiny/llama", "--load", "--keep")[:2] == (
            0, "llama is ready, and stays over a restart.\n",
        )  # fmt: skip
        asked = {"model": "llama", "prompt": "Hello", "max_tokens": 4, "ignore_eos": True}
        answer = httpx.post(f"{daemon.url}/v1/completions", json=asked, timeout=60)
        assert answer.json()["usage"]["completion_tokens"] == 4
        code, _, err = muxctl("rm", "llama", "--yes")
        assert (code, err) == (
            1, f"muxctl: {folder} is llama's, which is ready: `muxctl unload llama` first\n",
        )  # fmt: skip
        assert muxctl("unload", "llama")[0] == 0
        code, _, err = muxctl("rm", "llama", "--yes")
        assert code == 1
        assert "muxd.toml or a file beside it names: take it out there" in err
        assert folder.exists()
        assert muxctl("unload", "llama", "--keep")[0] == 0
        assert muxctl("rm", "llama", "--yes")[:2] == (0, f"{folder} is deleted.\n")
        assert os.listdir(home / "models") == []
