"""muxctl pull and rm, against a mirror of the hub: what is fetched, what is left behind, what is said."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_mirror import COMMIT, TOKEN, Mirror, mirror
from support.shared import until
from support.tiny import tiny_served

from muxd.config import ModelConfig
from muxd.fleet.catalog import Opened

REPO = "tiny/llama"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a model's repository holds, needed or not."""
    needed = contents(tiny_served(tmp_path_factory.mktemp("hub") / "m", inner=4096))
    more = ("pytorch_model.bin", "README.md", "modeling.py", "onnx/model.onnx", "model.fp16.safetensors")
    pooling = {"1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}'}
    return needed | pooling | dict.fromkeys(more, b"not asked for")


def whole_pieces(files: dict[str, bytes]) -> int:
    """What is written of half a file when no more comes."""
    pieces = len(files["model.safetensors"]) // 2 >> 20
    assert pieces > 1
    return pieces << 20


class Bench:
    def __init__(self, hub: Mirror, root: Path):
        self.hub, self.home = hub, root / "home"
        self.models = self.home / "models"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        self.env = {
            **kept, "HF_ENDPOINT": hub.url, "HF_HOME": str(root / "hf"), "MUXD_HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(root), "COLUMNS": "200",
        }  # fmt: skip

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "muxd.cli.muxctl", *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**self.env, **env},
        )  # fmt: skip

    def run(self, *arguments: str, **env: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **env)
        out, err = process.communicate()
        assert TOKEN not in out + err
        return process.returncode, out, err


@pytest.fixture
def bench(files: dict[str, bytes], tmp_path: Path) -> Iterator[Bench]:
    with mirror(
        {REPO: dict(files), "tiny/pickled": {"config.json": b"{}", "pytorch_model.bin": b"x"}}
    ) as hub:
        yield Bench(hub, tmp_path)


def test_a_pull_fetches_what_is_needed_and_no_more_and_a_second_one_nothing(
    bench: Bench, files: dict[str, bytes]
) -> None:
    code, out, err = bench.run("pull", REPO)
    assert (code, err.splitlines()[-1]) == (0, f"Downloading {REPO}: done"), err
    folder = bench.models / "llama"
    assert f"muxctl load --name llama --path {folder}" in out
    found = contents(folder)
    origin = json.loads(found.pop("pull.json"))
    assert (origin["repository"], origin["commit"]) == (REPO, COMMIT)
    needed = {"config.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"}
    assert found == {name: files[name] for name in found}
    assert needed <= found.keys() <= needed | {"tokenizer_config.json"}
    assert os.listdir(bench.models) == ["llama"]
    assert Opened(ModelConfig("m", str(folder))).spec.layers == 2
    asked = len(bench.hub.asked)
    assert bench.run("pull", REPO)[0] == 0
    assert len(bench.hub.asked) == asked + 1  # what there is, and nothing of it


def test_a_connection_that_is_cut_is_gone_on_with(bench: Bench, files: dict[str, bytes]) -> None:
    bench.hub.cut.add("model.safetensors")
    assert bench.run("pull", REPO, "--name", "mine")[0] == 0
    assert contents(bench.models / "mine")["model.safetensors"] == files["model.safetensors"]
    asked = [one.range for one in bench.hub.of("model.safetensors") if one.path.startswith("/store")]
    assert asked == [None, f"bytes={whole_pieces(files)}-"]


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_pull_that_was_killed_leaves_no_model_and_goes_on_where_it_was(
    bench: Bench, files: dict[str, bytes], number: signal.Signals
) -> None:
    bench.hub.held.add("model.safetensors")
    process = bench.start("pull", REPO)
    assert bench.hub.reached.wait(60)
    code, _, err = bench.run("pull", REPO)  # a second one beside it
    assert (code, err.count("\n")) == (1, 1)
    assert "is being filled by another process" in err
    part = bench.models / ".llama.unfinished" / "model.safetensors.part"
    until(lambda: part.stat().st_size == whole_pieces(files))
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    assert os.listdir(bench.models) == [".llama.unfinished"]
    bench.hub.held.clear()
    begun = len(bench.hub.of("model.safetensors"))
    assert bench.run("pull", REPO)[0] == 0
    assert os.listdir(bench.models) == ["llama"]
    assert contents(bench.models / "llama")["model.safetensors"] == files["model.safetensors"]
    ranges = {one.range for one in bench.hub.of("model.safetensors")[begun:]}
    assert ranges == {f"bytes={whole_pieces(files)}-"}
    assert len(bench.hub.of("config.json")) == 2  # its own, and the poolings', once each


def test_another_commit_begins_anew_and_damage_is_not_kept(bench: Bench) -> None:
    room = bench.models / ".llama.unfinished"
    room.mkdir(parents=True)
    (room / ".key").write_text(f"{REPO}@other")
    (room / "model.safetensors.part").write_bytes(b"of another commit")
    bench.hub.damaged.add("model.safetensors")
    code, _, err = bench.run("pull", REPO)
    assert (code, err.splitlines()[-1]) == (
        1, f"muxctl: {REPO}: model.safetensors arrived damaged; start again",
    )  # fmt: skip
    assert {one.range for one in bench.hub.of("model.safetensors")} == {None}
    bench.hub.damaged.clear()
    assert bench.run("pull", REPO)[0] == 0


def test_a_gated_model_wants_a_token_which_goes_to_the_hub_alone(bench: Bench) -> None:
    bench.hub.gated.add(REPO)
    code, _, err = bench.run("pull", REPO)
    assert code == 1
    assert err == (
        f"muxctl: {REPO} is gated: accept its terms on {bench.hub.url}/{REPO}, then set HF_TOKEN to a token "
        "of yours that may read it, or log in with `hf auth login`\n"
    )
    bench.hub.asked.clear()
    assert bench.run("pull", REPO, HF_TOKEN=TOKEN)[0] == 0
    assert {one.authorized for one in bench.hub.asked if not one.path.startswith("/store")} == {True}
    assert {one.authorized for one in bench.hub.asked if one.path.startswith("/store")} == {False}
    assert TOKEN.encode() not in b"".join(contents(bench.models).values())


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["no/model"], {}, ("there is no model no/model", "HF_TOKEN")),
        ([REPO, "--revision", "v9"], {}, ("no revision 'v9'",)),
        ([f"{REPO}:Q4_K_M"], {}, ("no file 'Q4_K_M'", "no GGUF file")),
        (["tiny/pickled"], {}, ("neither model.safetensors nor a GGUF", "pytorch_model.bin", "never loaded")),
        ([REPO], {"HF_ENDPOINT": "http://127.0.0.1:9"}, ("cannot reach http://127.0.0.1:9", "HF_ENDPOINT")),
        ([REPO], {"HF_HUB_OFFLINE": "1"}, ("HF_HUB_OFFLINE is set",)),
        ([REPO, "--name", "../x"], {}, ("is not a model name",)),
        (["llama"], {}, ("'llama' is no model of the hub", "OWNER/NAME")),
        ([REPO, "--keep"], {}, ("--keep goes with --load",)),
    ],
)
def test_what_cannot_be_had_is_one_sentence(
    bench: Bench, arguments: list[str], env: dict[str, str], words: tuple[str, ...]
) -> None:
    code, out, err = bench.run("pull", *arguments, **env)
    assert (code in (1, 2), out, err.count("\n")) == (True, "", 1), err
    assert [word for word in words if word not in err] == [], err
    assert not bench.models.exists()


def test_a_config_that_is_not_computed_here_is_refused_before_any_weights(bench: Bench) -> None:
    bench.hub.repositories[REPO]["config.json"] = b'{"architectures": ["MambaForCausalLM"]}'
    code, _, err = bench.run("pull", REPO)
    assert code == 1
    assert err.splitlines()[-1].startswith(f"muxctl: {REPO}/config.json: ")
    assert bench.hub.of("model.safetensors") == []
    assert os.listdir(bench.models) == []


def test_a_gguf_is_chosen_by_its_quant_and_imported(bench: Bench, write_tiny: Callable[..., Any]) -> None:
    made = write_tiny("llama", "Q8_0")
    gguf = {
        "tiny-Q8_0.gguf": made.path.read_bytes(),
        "tiny-Q4_K_M.gguf": b"GGUF",
        "mmproj-Q8_0.gguf": b"GGUF",
    }
    bench.hub.repositories["tiny/gguf"] = gguf
    code, _, err = bench.run("pull", "tiny/gguf")
    assert code == 1
    assert "tiny/gguf has several models; say which, as tiny/gguf:FILE: tiny-Q4_K_M.gguf, tiny-Q8_0" in err
    assert bench.run("pull", "tiny/gguf:q8_0")[0] == 0
    assert os.listdir(bench.models) == ["tiny-Q8_0"]
    folder = bench.models / "tiny-Q8_0"
    assert {"config.json", "model.safetensors", "import.json", "pull.json"} <= contents(folder).keys()
    assert bench.hub.of("tiny-Q4_K_M.gguf") == bench.hub.of("mmproj-Q8_0.gguf") == []
    code, _, err = bench.run("pull", "tiny/gguf:tiny-Q4_K_M.gguf", "--name", "broken")
    assert code == 1
    assert "`muxctl rm broken` deletes it" in err
    assert bench.run("rm", "broken", "--yes")[0] == 0
    assert os.listdir(bench.models) == ["tiny-Q8_0"]


def test_rm_asks_and_deletes_only_what_is_in_the_folder_of_models(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for folder in (outside, bench.models / "a"):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    (bench.models / "link").symlink_to(outside)
    (bench.models / "a" / "in").symlink_to(outside)
    for name, words in (("../outside", "is not a model name"), ("b", "there are: a, link")):
        code, _, err = bench.run("rm", name, "--yes")
        assert (code, words in err) == (1, True), err
    code, _, err = bench.run("rm", "a")
    assert (code, err) == (2, "muxctl: nobody is here to be asked: say --yes\n")
    for name in ("a", "link"):
        assert bench.run("rm", name, "--yes")[0] == 0
    assert os.listdir(bench.models) == []
    assert os.listdir(outside) == ["config.json"]
