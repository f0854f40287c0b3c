"""What the children of ``gpu_all.py`` find on a bare host: muxd, packages it lacks, and MPS's own server.

Standard library only. The repository may be a copy of its tree, without git and not installed; packages that
the host lacks may lie beside it as wheels, in ``.whl/``.
"""

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

WHEELS = ".whl"
_MPS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
_FOLDERS = ("/usr/local/nvidia/bin", "/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/nvidia/bin")
# Of whatever plugins a host has only these, and no warning of a version nobody has met yet fails a test.
_PYTEST = {
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "pytest_timeout,_hypothesis_pytestplugin",
    "PYTEST_ADDOPTS": "-o filterwarnings=default",
}
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def environment(root: Path, site: Path | None, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """For every process of a run. Children of children are started with ``-P`` or elsewhere: the repository
    is named, not found."""
    path = [*([str(site)] if site else []), str(root), *_listed(given.get("PYTHONPATH", ""))]
    return {
        **given, **_PYTEST, **_OFFLINE,
        "PYTHONUNBUFFERED": "1",  # a process that is cut short has said what it knew
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)),
        "PATH": with_mps(given.get("PATH", os.defpath)),
    }  # fmt: skip


def with_mps(path: str, folders: tuple[str, ...] = _FOLDERS) -> str:
    """``path`` with the folders of MPS's programs: its control daemon looks for its server on PATH."""
    own = _listed(path)
    found = (shutil.which(name, path=os.pathsep.join([*own, *folders])) for name in _MPS)
    return os.pathsep.join(dict.fromkeys([*own, *(str(Path(one).parent) for one in found if one)]))


def installed(root: Path) -> tuple[Path | None, str]:
    """The folder that the wheels of ``.whl/`` are installed in, and what went wrong; None without any."""
    wheels, site = sorted((root / WHEELS).glob("*.whl")), root / WHEELS / "site"
    if not wheels:
        return None, ""
    options = ["--quiet", "--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), *map(str, wheels)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return site, done.stderr.strip() if done.returncode else ""


def without_driver() -> str:
    """Why there can be no GPU here, "" if there may be one."""
    name = os.environ.get("MUXD_LIBCUDA") or "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return f"no CUDA driver: {error}"
    return ""


def gpu_name() -> str:
    """As nvidia-smi has it."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return "a GPU that nvidia-smi does not tell of"
    return "; ".join(done.stdout.split("\n")).strip("; ") or "a GPU that nvidia-smi does not tell of"


def _listed(path: str) -> list[str]:
    return [folder for folder in path.split(os.pathsep) if folder]
