"""Which format a matrix gets by settings, file and host, and what is refused in which words."""

import shutil
from pathlib import Path

import pytest

from muxd.errors import ModelFolderError
from muxd.kernels import native
from muxd.messages import Dtype, WeightsName
from muxd.models.packing import Packing, packing_for

compiled = pytest.mark.skipif(bool(native.missing()), reason=native.missing())


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(native.NativeMissing) as told:
        native.library.__wrapped__("native")
    monkeypatch.setattr(native, "missing", lambda: told.value.message)
    return told.value.message


@pytest.mark.parametrize(
    ("weights", "name", "blocks", "dtype", "form"),
    [
        ("file", "layers.0.o", "", "bfloat16", "bf16"),
        ("file", "layers.0.o", "", "float32", "f32"),
        ("file", "layers.0.o", "q4_k", "float32", "q4_k"),
        ("int8", "layers.0.o", "", "bfloat16", "q8_0"),
        ("int8", "layers.0.o", "q4_k", "bfloat16", "q4_k"),
        ("int4", "layers.0.o", "", "bfloat16", "q4_1"),
        ("int4", "embed", "", "bfloat16", "q8_0"),
        ("float16", "layers.0.o", "q4_k", "bfloat16", "f16"),
        ("bfloat16", "embed", "", "float32", "bf16"),
    ],
)
def test_the_format_of_a_matrix(
    weights: WeightsName, name: str, blocks: str, dtype: Dtype, form: str
) -> None:
    assert Packing(weights).form(name, blocks, dtype) == form


@compiled
def test_native_where_it_can_be() -> None:
    assert packing_for("file", "auto", None, gpu=False) == Packing("file")
    assert packing_for("int8", "native", None, gpu=False) == Packing("int8")
    assert packing_for("file", "torch", None, gpu=False) is None
    assert packing_for("file", "auto", None, gpu=True) is None


@pytest.mark.parametrize("weights", ["int8", "int4", "float16"])
def test_what_torch_has_not_is_refused_by_name(weights: WeightsName) -> None:
    wanted = f'model.weights = "{weights}" needs the native step of a CPU .cpu_step is "torch".; write "file"'
    with pytest.raises(ModelFolderError, match=wanted):
        packing_for(weights, "torch", "bfloat16", gpu=False)
    with pytest.raises(ModelFolderError, match="it computes on the CPU alone"):
        packing_for(weights, "auto", None, gpu=True)


def test_without_a_compiler_torch_serves_and_the_sentence_says_so(no_compiler: str) -> None:
    assert "no C++ compiler" in no_compiler
    assert "install one" in no_compiler
    assert packing_for("file", "auto", None, gpu=False) is None
    assert packing_for("bfloat16", "auto", "bfloat16", gpu=False) is None
    with pytest.raises(ModelFolderError, match=r'model.cpu_step = "native": no C\+\+ compiler'):
        packing_for("file", "native", None, gpu=False)


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'step.cpp:1: error: no such standard' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("MUXD_HOME", str(tmp_path / "home"))
    with pytest.raises(native.NativeMissing, match=r"no such standard.*g\+\+ 10 or clang 12"):
        native.library.__wrapped__("native")
    assert [path.name for path in (tmp_path / "home" / "native").iterdir()] == ["lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MUXD_HOME", str(tmp_path / "file"))
    with pytest.raises(native.NativeMissing, match=r"kept or loaded in .*MUXD_HOME names the folder"):
        native.library.__wrapped__("native")
