"""`muxd profile` with a real Runner in a process of its own, on a tiny model."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from support.costs import model, table
from support.tiny import tiny_served
from typer.testing import CliRunner

from muxd.cli.muxd import app
from muxd.cli.overhead import fitted, measure_overhead
from muxd.cli.profiling import Plan, Prober, _parts, cells, measure, merged, shares
from muxd.cost import probe
from muxd.cost.fit import predicted
from muxd.cost.profile import ModelProfile, check, load, save
from muxd.cost.table import CostTable
from muxd.device.cpu import Cpu
from muxd.errors import ConfigError, ModelFolderError
from muxd.kernels import native
from muxd.messages import BatchDone, Decode, Prefill, Sampling, StepName, WeightsName
from muxd.sim.records import Records
from muxd.sim.workload import Item, Workload
from muxd.worker import alone, profile
from muxd.worker.runner import Batch, Runner

pytestmark = pytest.mark.xdist_group("cores")  # what others compute meanwhile would be measured, too

SMALL = Plan((1, 32), (0, 64), 0.0, (1, 4), (32, 128), 0.0, 0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_served(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def measured(folder: Path) -> tuple[ModelProfile, int]:
    """On this machine, and in how many steps."""
    steps: list[None] = []
    found = measure(folder, "float32", lambda: steps.append(None), device=Cpu(), plan=SMALL)
    return found, len(steps)


def test_a_model_is_measured_over_its_grid_and_joins_the_file(
    measured: tuple[ModelProfile, int], tmp_path: Path
) -> None:
    found, steps = measured
    rungs = Cpu().rungs
    assert steps == cells(Cpu(), SMALL) - (0 if len(rungs) > 1 else 3)
    check(found.prefill, "prefill")
    check(found.decode, "decode")
    assert found.decode.shares == list(rungs)
    assert found.decode.rows == [1, 4]
    assert found.folder == "tiny"
    assert (found.shape.layers, found.shape.kv_heads, found.shape.head_dim) == (2, 2, 16)
    assert found.weight_bytes > 0
    assert (found.beside is not None) == (len(rungs) > 1)
    save(tmp_path / "cost.json", merged(tmp_path / "cost.json", "first", found, Cpu()))
    save(tmp_path / "cost.json", merged(tmp_path / "cost.json", "second", found, Cpu()))
    both = load(tmp_path / "cost.json")
    assert set(both.models) == {"first", "second"}
    assert both.device.memory is not None
    assert both.device.memory.limit >= max(both.device.memory.reached)
    for seen, law in predicted(both.models["first"], both.device.memory).values():
        assert seen > 0
        assert law >= 1


@pytest.mark.skipif(bool(native.missing()), reason=native.missing())
def test_weights_are_measured_as_they_are_configured(folder: Path) -> None:
    plan = Plan((8,), (0,), 0.0, (1,), (32,), 0.0, 0.01)

    def of(weights: WeightsName, cpu_step: StepName) -> ModelProfile:
        return measure(
            folder, "float32", lambda: None, plan=plan, device=Cpu(1), weights=weights, cpu_step=cpu_step
        )

    floats, small = of("file", "torch"), of("int8", "auto")
    assert (floats.weights, floats.step) == ("file", "torch")
    assert (small.weights, small.step) == ("int8", "native")
    assert small.weight_bytes < 0.5 * floats.weight_bytes, "a quarter of float32, and scales and padding"
    with pytest.raises(ModelFolderError, match="exit code 1"):
        of("int8", "torch")


def test_tokens_are_chosen_as_the_configuration_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What that costs is a part of every batch."""
    chosen: list[Sampling] = []
    hot = Sampling(temperature=0.7, top_p=0.9)
    bench = profile.Bench(probe.Setup(str(folder), "float32", 8192, 8 << 20, 1, sampling=hot))
    begin = bench._runner.begin

    def noted(asked: Prefill | Decode) -> Batch:
        chosen.extend(chunk.sampling for chunk in getattr(asked, "chunks", ()))
        return begin(asked)

    monkeypatch.setattr(bench._runner, "begin", noted)
    assert len(bench.decode(probe.Decode(2, 32, 100, least=2))) == 2
    assert set(chosen) == {hot}

    args = ["profile", str(folder), "--name", "tiny", "--no-daemon", "--out", str(tmp_path / "c.json")]
    for wrong, told in {
        "{ temperature = 9 }": "$.temperature",
        "{ top_q = 1 }": "unknown field `top_q`",
        "0.7": "Expected `object`",
        "{": "as in muxd.toml",
    }.items():
        bad = CliRunner().invoke(app, [*args, "--sampling", wrong])
        assert (bad.exit_code, told in bad.output) == (2, True), bad.output
    bad = CliRunner().invoke(app, [*args, "--roofline", "h200", "--sampling", "{ top_p = 0.9 }"])
    assert bad.exit_code == 2


@pytest.mark.slow
def test_keys_and_values_of_a_byte_are_measured_as_such(folder: Path) -> None:
    found = measure(folder, "float32", lambda: None, plan=SMALL, kv_dtype="fp8", device=Cpu(1))
    check(found.decode, "decode")
    assert (found.shape.dtype, found.shape.kv_dtype) == ("float32", "fp8")
    with Prober(folder, "float32", Cpu(1), 8 << 20, kv_dtype="fp8") as prober:
        assert prober.opened.row_tokens == 8192 // (2 * 16)


@pytest.mark.slow
def test_random_weights_need_no_file_but_config_json(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ModelFolderError, match="exit code 1"), Prober(bare, "float32", Cpu(1)):
        pass
    found = measure(bare, "float32", lambda: None, plan=SMALL, device=Cpu(1), random=True)
    check(found.decode, "decode")
    assert (found.shape.layers, found.shape.head_dim) == (2, 16)
    args = ["profile", str(bare), "--name", "x", "--random", "--device", "tpu", "--out", str(tmp_path / "c")]
    refused = CliRunner().invoke(app, args)
    assert refused.exit_code != 0
    assert "--device: 'tpu' is no device" in refused.output


class InParts(Cpu):
    """Shares are parts of four, as on a GPU under MPS."""

    parts = 4

    def __init__(self, cores: int) -> None:
        super().__init__(cores)
        self.rungs = (25, 50, 75, 100)


class Capped(Cpu):
    """Every percent, or every one of ``rungs``, is a cap for a worker's life."""

    caps = True

    def __init__(self, cores: int, rungs: tuple[int, ...] = tuple(range(1, 101))) -> None:
        super().__init__(cores)
        self.rungs = rungs
        self.asked: list[int] = []

    def worker_env(self, cap: int = 0) -> dict[str, str]:
        self.asked.append(cap)
        return super().worker_env(cap)


@pytest.mark.slow
def test_shares_of_a_gpu_become_parts_or_processes_of_their_own(folder: Path) -> None:
    plan = Plan((8,), (0,), 0.0, (1,), (32,), 0.0, 0.01)
    parts = InParts(1)
    assert [_parts(parts, share) for share in shares(parts)] == [0b0001, 0b0011, 0b0111, 0]
    assert _parts(parts, 25, after=25) == 0b0010, "beside another"
    assert measure(folder, "float32", lambda: None, plan=plan, device=parts).decode.shares == [
        25,
        50,
        75,
        100,
    ]
    assert list(shares(Capped(1))) == list(range(10, 101, 10))
    capped = Capped(1, (30, 60, 100))
    found = measure(folder, "float32", lambda: None, plan=plan, device=capped)
    assert found.prefill.shares == list(shares(capped)) == [30, 60, 100]
    assert set(capped.asked) == {0, *shares(capped)}


def test_more_work_is_measured_as_more_time(folder: Path) -> None:
    """On one thread, and the best of five: whoever else uses the machine only ever adds time."""
    share = Cpu().rungs[0]
    with Prober(folder, "float32", Cpu(), 64 << 20) as prober:

        def best(asked: probe.Probe) -> float:
            return min(prober.measure(asked) for _ in range(5))

        short, long = (best(probe.Prefill(n, 0, share, least=7)) for n in (8, 400))
        small, large = (best(probe.Decode(n, 256, share, least=7)) for n in (1, 32))
    assert long > 2 * short
    assert large > 2 * small


def test_what_does_not_fit_the_pool_or_is_no_model_is_said(folder: Path, tmp_path: Path) -> None:
    with (
        Prober(folder, "float32", Cpu(), 1 << 20) as prober,
        pytest.raises(ModelFolderError, match="exit code"),
    ):
        prober.measure(probe.Decode(32, 400, 100))
    with pytest.raises(ModelFolderError, match="exit code 1"), Prober(tmp_path, "float32", Cpu()):
        pass


@pytest.mark.parametrize("paged", [False, True])
def test_where_the_worker_runs_ahead_so_do_the_steps_that_are_timed(
    folder: Path, paged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``paged`` is a GPU's step. None is counted that is not finished, and none is left over."""
    monkeypatch.setattr(alone, "Runner", partial(Runner, paged=paged))
    bench = profile.Bench(probe.Setup(str(folder), "float32", 8192, 4 << 20, 1, step="torch"))
    begin, under_way, most = bench._runner.begin, set[int](), 0

    def counted(command: Decode | Prefill) -> Batch:
        nonlocal most
        batch = begin(command)
        under_way.add(batch.number)
        most, finish = max(most, len(under_way)), batch.finish

        def finished(after: float = 0.0) -> BatchDone:
            under_way.discard(batch.number)
            return finish(after)

        batch.finish = finished  # type: ignore[method-assign]
        return batch

    monkeypatch.setattr(bench._runner, "begin", counted)
    found = bench.decode(probe.Decode(2, 16, 100, least=6))
    assert len(found) == 6
    assert all(seconds > 0 for seconds in found)
    assert most == 1 + paged
    assert not under_way


def test_a_file_from_another_device_is_not_mixed(tmp_path: Path) -> None:
    from muxd.cost.profile import FORMAT, Device, Profile

    save(tmp_path / "cost.json", Profile(FORMAT, Device("h200", 100, [100]), {"a": model()}))
    with pytest.raises(ConfigError, match="was measured on h200"):
        merged(tmp_path / "cost.json", "b", model(), Cpu())


def test_the_overhead_is_what_the_table_does_not_explain() -> None:
    cost = table(a=model(prefill=0.001, decode=0.01))
    step = {1: 0.010 + 0.002 + 0.0005, 8: 0.010 + 0.002 + 8 * 0.0005}

    def runs(count: int) -> Records:
        records = Records(Workload([Item(0.0, "a", 64, 96)] * count, {}))
        records.first[:] = 0.064 + 0.0025 + 0.004
        records.end[:] = records.first + 95 * step[count]
        return records

    found = fitted(cost, "a", runs(1), runs(8))
    assert found.token == pytest.approx(0.0005, rel=1e-3)
    assert found.batch == pytest.approx(0.002, rel=1e-3)
    assert found.request == pytest.approx(0.004, rel=1e-3)


@pytest.mark.parametrize("gpu", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_overhead_is_measured_on_a_live_daemon(
    folder: Path, measured: tuple[ModelProfile, int], gpu: bool
) -> None:
    """``gpu``: by second tokens alone, as no step that runs ahead tells it."""
    made = merged(Path("/nowhere"), "tiny", measured[0], Cpu())
    assert not made.device.gpu
    cost = CostTable(replace(made, device=replace(made.device, gpu=gpu)))
    found = measure_overhead(folder, "tiny", "float32", cost)
    values = np.array([found.batch, found.token, found.request])
    assert (values >= 0).all()
    assert 0 < values.sum() < 5.0


def test_a_roofline_needs_no_device(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "h200.json"
    args = ["profile", str(folder), "--name", "tiny", "--roofline", "h200", "--out", str(file)]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    assert "decode step" in result.output
    assert load(file).models["tiny"].measured == "roofline of h200"
    assert CliRunner().invoke(app, [*args[:3], "kept", *args[4:], "--kv-dtype", "fp8"]).exit_code == 0
    assert {name: m.shape.kv_dtype for name, m in load(file).models.items()} == {
        "tiny": "auto",
        "kept": "fp8",
    }
    again = CliRunner().invoke(app, [*args[:-3], "tpu", "--out", str(file)])
    assert again.exit_code != 0
    assert "known are" in again.output


def test_an_unknown_type_and_folder_are_one_sentence(folder: Path, tmp_path: Path) -> None:
    bad = CliRunner().invoke(app, ["profile", str(folder), "--name", "x", "--dtype", "int3"])
    assert bad.exit_code != 0
    assert "int3" in bad.output
    bad = CliRunner().invoke(app, ["profile", str(folder), "--name", "x", "--kv-dtype", "int3"])
    assert bad.exit_code == 2
    assert "--kv-dtype 'int3': must be one of auto, fp8" in bad.output
    missing = CliRunner().invoke(
        app, ["profile", str(tmp_path / "no"), "--name", "x", "--out", str(tmp_path / "c.json")]
    )
    assert missing.exit_code == 1
    assert "is not a folder" in missing.output
