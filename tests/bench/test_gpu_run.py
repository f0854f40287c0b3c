"""The one command for a GPU where there is none: what it runs, on what host, and its tables."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.published import raw_table

from muxd.device.cpu import Cpu

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import share_table

    return share_table


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu_all

    return gpu_all


def test_a_share_table_of_a_tiny_model_beside_published_times(table: Any, tmp_path: Path) -> None:
    device = Cpu(2)
    assert table.device_shares(device, [30, 50, 100]) == [50, 100]
    forms = table.FORMS
    lines = list(table.measured(device, forms["tiny"], "float32", [1], [32], [50, 100]))
    assert [(line.phase, line.share) for line in lines] == [
        ("prefill", 50), ("decode", 50), ("prefill", 100), ("decode", 100),
    ]  # fmt: skip
    assert all(0 < line.seconds < 60 for line in lines)
    (tmp_path / "llama.json").write_text(json.dumps(raw_table()))
    both = table.beside(lines, tmp_path / "llama.json", "llama-7b")
    assert [line.published for line in both if line.share == 100] == [0.011, 0.011]
    assert table.beside(lines, tmp_path / "llama.json", "tiny") == lines
    text = table.table(both)
    assert text.count("| here |") == 2
    assert "| published A100 | 11.00 | - |" in text, "nothing was published for 50 %"


class Capped(Cpu):
    caps = True


def test_shares_are_those_the_device_can_give_a_process(table: Any) -> None:
    assert table.device_shares(Capped(1), [30, 100]) == [30, 100]
    alone = Cpu(1)
    assert table.device_shares(alone, [30, 100]) == [100]


def test_a_run_that_is_ended_ends_its_stage_and_keeps_its_words(tmp_path: Path) -> None:
    """SIGTERM while a stage runs; what the stage has started is looked for by the fixture of all tests."""
    command = [sys.executable, str(BENCHMARKS / "gpu_all.py"), "--device", "cpu", "--only", "shares"]
    results, out = tmp_path / "results", tmp_path / "out"
    run = subprocess.Popen(
        [*command, "--results", str(results), "--out", str(out)], stdout=subprocess.PIPE, text=True
    )
    while not (results / "shares.log").exists():
        assert run.poll() is None
    run.terminate()
    printed, _ = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "gpu-part-1-2-3.md" in printed
    with tarfile.open(out / "gpu-part-1-2-3.tgz") as tar:
        assert "shares.log" in tar.getnames()


def every_stage(kit: Any) -> dict[str, Any]:
    from gpu_stages import PARTS, rehearsal

    stages = [one for part in PARTS.values() for one in part.stages(kit)]
    named = {stage.name: stage for stage in stages}
    assert len(named) == len(stages), "a stage's name is its files' name"
    return {**named, **{f"rehearsed {stage.name}": stage for stage in rehearsal(kit._replace(device="cpu"))}}


@pytest.mark.parametrize("quick", [False, True])
def test_every_stage_is_a_script_with_options_that_it_has(run: Any, tmp_path: Path, quick: bool) -> None:
    table = tmp_path / "llama.json"
    for name, stage in every_stage(run.Kit(tmp_path, "cuda:0", quick, table, True)).items():
        assert stage.seconds + 10 < 600, name
        if stage.command[1] == "-m":
            continue
        script = Path(stage.command[1])
        text = script.read_text()
        if script.stem.startswith("probe_"):
            text += (BENCHMARKS / "probe.py").read_text()
        options = [word for word in stage.command[2:] if word.startswith("--")]
        assert all(f'"{option}"' in text for option in options), name


def test_what_times_the_device_has_it_alone_and_what_is_a_lane_does_not_time(
    run: Any, tmp_path: Path
) -> None:
    for name, stage in every_stage(run.Kit(tmp_path)).items():
        timed = "roofline" in stage.command[1] or Path(stage.command[1]).stem.startswith("probe_")
        if timed and not name.startswith("rehearsed"):  # which measures nothing
            assert stage.alone, name
        assert not (stage.alone and stage.lane)


def test_every_gpu_test_is_in_a_stage_and_every_kernel_test_in_one_lane(run: Any) -> None:
    from gpu_stages import KERNEL_TESTS, LANES

    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("tests/**/conftest.py")]  # fixtures mark, too
    marked = {file for file in files if re.search(r"mark\.gpu|import .*\bWhere\b", file.read_text())}
    assert {file.parent.name for file in marked - {Path(__file__)}} == {"gpu", "worker", "e2e"}
    tree = ast.parse((ROOT / KERNEL_TESTS).read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    for words in LANES.values():
        assert all(any(word in name for name in names) for word in words), "nothing is called so any more"
    for name in (name for name in names if name.startswith("test_")):
        assert sum(any(word in name for word in words) for words in LANES.values()) <= 1, name


def test_only_names_stages_that_there_are(run: Any, tmp_path: Path) -> None:
    kit = run.Kit(tmp_path)
    assert [stage.name for stage in run.chosen(kit, [1, 2], ["prefill", "doctor"])] == ["doctor", "prefill"]
    with pytest.raises(SystemExit, match="--only prefil: there is facts, "):
        run.chosen(kit, [1, 2], ["prefil"])


def test_without_a_gpu_it_says_so_and_writes_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MUXD_LIBCUDA", "/nowhere/libcuda.so.1")
    monkeypatch.setattr(sys, "argv", ["gpu_all.py", "--results", str(tmp_path / "results")])
    with pytest.raises(SystemExit, match="cuda:0 cannot be used: no CUDA driver"):
        run.main()
    assert not (tmp_path / "results").exists()


def bare_copy(folder: Path) -> Path:
    """The tree as a copy that git knows nothing of, links as links."""
    copied = ("benchmarks", "muxd", "models", "triton_kernels")
    for name in copied:
        shutil.copytree(
            ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def test_a_bare_copy_of_the_tree_runs_without_git_and_without_any_package_of_its_own(tmp_path: Path) -> None:
    """``-S``: the command itself finds no installed package; its stages do, and the copy's muxd."""
    copy = bare_copy(tmp_path / "tree")
    command = [sys.executable, "-S", "benchmarks/gpu_all.py", "--device", "cpu", "--only", "facts"]
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MUXD_COMMIT")}
    env = {**kept, "PATH": str(tmp_path), "OUT": str(tmp_path / "out")}
    done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "gpu-part-1-2-3.json", "gpu-part-1-2-3.md", "gpu-part-1-2-3.tgz",
    ]  # fmt: skip
    summary = json.loads((tmp_path / "out" / "gpu-part-1-2-3.json").read_text())
    assert summary["machine"]["commit"] == "unknown"
    assert [(one["step"], one["state"]) for one in summary["steps"]] == [("facts", "good")]
    facts = (copy / "gpu-results" / "facts.log").read_text()
    assert "git: not on PATH" in facts
    assert f"import muxd.daemon: {copy / 'muxd' / 'daemon.py'}" in facts


def test_children_find_wheels_and_the_tree_from_anywhere(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gpu_host

    assert gpu_host.installed(tmp_path) == (None, "")
    (tmp_path / ".whl").mkdir()
    with zipfile.ZipFile(tmp_path / ".whl" / "muxdwheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("muxdwheel.py", "ANSWER = 42\n")
        about = "muxdwheel-1.0.dist-info"
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: muxdwheel\nVersion: 1.0\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    site, wrong = gpu_host.installed(tmp_path)
    assert (site, wrong) == (tmp_path / ".whl" / "site", "")
    copy = tmp_path / "tree"
    (copy / "muxd").mkdir(parents=True)
    (copy / "muxd" / "__init__.py").touch()
    env = gpu_host.environment(copy, site, {"PATH": os.environ["PATH"]})
    code = "import muxd, muxdwheel; print(muxd.__file__, muxdwheel.ANSWER)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd="/", env=env, capture_output=True, text=True
    )
    assert done.stdout.split() == [str(copy / "muxd" / "__init__.py"), "42"], done.stderr
    (tmp_path / ".whl" / "broken-1.0-py3-none-any.whl").write_text("no wheel")
    assert "broken" in gpu_host.installed(tmp_path)[1]


def test_the_folder_of_the_mps_server_comes_onto_the_path(run: Any, tmp_path: Path) -> None:
    """Its control daemon looks for it there; both may lie in folders of their own."""
    from gpu_host import with_mps

    folders = [tmp_path / name for name in ("control", "server", "other")]
    for folder, program in zip(folders, ("control", "server", "else"), strict=True):
        folder.mkdir()
        (folder / f"nvidia-cuda-mps-{program}").touch(mode=0o755)
    control, server, _ = map(str, folders)
    assert with_mps("/usr/x", tuple(map(str, folders))) == f"/usr/x:{control}:{server}"
    assert with_mps(f"{server}:{control}", ()) == f"{server}:{control}"
    assert with_mps("/usr/x", ()) == "/usr/x"


def test_a_commit_is_told_by_the_caller_where_git_cannot(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import provenance

    monkeypatch.delenv(provenance.COMMIT, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    assert provenance.commit() == "unknown"
    monkeypatch.setenv(provenance.COMMIT, "abc1234")
    assert provenance.commit() == "abc1234"
