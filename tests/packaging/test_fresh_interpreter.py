"""What a fresh interpreter outside the repository sees: no torch on the daemon's side, no stray names."""

import subprocess
import sys

import pytest


def fresh(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "rooms",
    [
        "muxd.daemon",  # reaches every room of the daemon's side
        "muxd.cli.muxd, muxd.cli.muxctl, muxd.cli.importing, muxd.importer.demo",
        "muxd.models.spec, muxd.models.weights, muxd.pool.ledger, muxd.engine.scheduler",
    ],
)
def test_the_deciding_rooms_load_neither_torch_nor_triton(rooms: str) -> None:
    heavy = "{'torch', 'triton', 'transformers'} & sys.modules.keys()"
    assert fresh(f"import sys, {rooms}; print(sorted({heavy}))") == "[]"


def test_muxctl_loads_nothing_of_the_daemon() -> None:
    rooms = [
        "muxd.api",
        "muxd.engine.scheduler",
        "muxd.fleet.supervisor",
        "muxd.pool",
        "gguf",
        "numpy",
        "aiohttp",
    ]
    assert fresh(f"import sys, muxd.cli.muxctl; print([r for r in {rooms} if r in sys.modules])") == "[]"


@pytest.mark.parametrize("name", ["models", "triton_kernels"])
def test_no_bare_top_level_name(name: str) -> None:
    assert fresh(f"from importlib.util import find_spec; print(find_spec({name!r}))") == "None"


@pytest.mark.parametrize(("bare", "name"), [("models", "muxd.models"), ("triton_kernels", "muxd.kernels")])
def test_the_accidental_second_copy_is_an_error(bare: str, name: str, pytestconfig: pytest.Config) -> None:
    code = f"import sys; sys.path.insert(0, {str(pytestconfig.rootpath)!r}); import {bare}"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 1
    assert f"import {name} instead" in done.stderr
