"""The wheel holds what the tree holds: the links of muxd/ are easily lost on the way."""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKS = {"models": "models", "kernels": "triton_kernels", "cli/systemd": "systemd"}


def tree() -> set[str]:
    """Python files, texts, the page, and sources that are compiled where they are used, as they must lie in a
    wheel, each folder listed under the name it is imported by."""
    own = {
        p.relative_to(ROOT).as_posix()
        for kind in ("*.py", "*.txt", "page/*")
        for p in (ROOT / "muxd").rglob(kind)
        if not through_link(p)
    }
    linked = {
        f"muxd/{name}/{p.relative_to(ROOT / real).as_posix()}"
        for name, real in LINKS.items()
        for p in (ROOT / real).rglob("*")
        if p.suffix in (".py", ".cpp", ".h", ".service", ".socket", ".conf")
    }
    return own | linked


def through_link(path: Path) -> bool:
    return path.relative_to(ROOT / "muxd").as_posix().startswith(tuple(f"{name}/" for name in LINKS))


def test_the_links_are_links_and_stay_inside() -> None:
    for name, real in LINKS.items():
        link = ROOT / "muxd" / name
        assert not link.readlink().is_absolute()
        assert link.resolve() == ROOT / real


@pytest.mark.skipif(importlib.util.find_spec("setuptools") is None, reason="setuptools is not installed")
def test_the_wheel_equals_the_tree(tmp_path: Path) -> None:
    # In a copy: setuptools writes build/ and egg-info beside what it builds.
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    for name in ("muxd", *LINKS.values()):
        shutil.copytree(
            ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, source],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    files = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert files == tree() | {"muxd/py.typed"}
    assert "muxd/models/__init__.py" in files


def test_every_folder_of_code_is_a_package() -> None:
    """Otherwise the import contracts do not see it."""
    for name in ("muxd", *LINKS.values()):
        for file in (ROOT / name).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file.parent
