"""The published experiments as they are simulated: honest traffic, and the figures' own arithmetic."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.placements import PUBLISHED

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "published"


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compare

    return compare


@pytest.fixture
def data() -> Path:
    if not (PUBLISHED / "llama-a100-latency.json").is_file():
        pytest.skip(f"MuxServe's latency table is not in {PUBLISHED}")
    return PUBLISHED


def test_every_model_gets_requests_at_its_own_rate(experiments: Any) -> None:
    """MuxServe's generator gave llm-10's requests to llm-2."""
    problem = experiments.setting.synthetic(0.9, 20)
    workload = experiments.setting.traffic(problem, "sharegpt", 300.0, 1)
    names = [item.model for item in workload.items]
    for model in problem.models:
        expected = 300 * model.rate
        assert abs(names.count(model.name) - expected) < 5 * expected**0.5
    assert all(a.time <= b.time for a, b in zip(workload.items, workload.items[1:], strict=False))
    prompts = np.array([item.prompt_tokens for item in workload.items])
    outputs = np.array([item.output_tokens for item in workload.items])
    assert prompts.mean() == pytest.approx(161, rel=0.05)
    assert outputs.mean() == pytest.approx(338, rel=0.05)


def test_the_fixed_spatial_plan_fills_the_cluster_exactly(experiments: Any) -> None:
    from systems import fixed

    layout = fixed(experiments.setting.synthetic(2.1, 20), "sharegpt")
    assert sum(mesh.gpus for mesh in layout) == 32
    assert sorted(model for mesh in layout for model in mesh.models) == list(range(19))


def test_weights_of_the_figures(experiments: Any) -> None:
    from measures import weighted

    assert weighted({"a": 10.0, "b": 5.0}, {"a": 20.0, "b": 0.9}, "sharegpt") == pytest.approx(100.0)
    assert weighted({"a": 10.0, "b": 5.0}, {"a": 3.0, "b": 1.0}, "chatlmsys") == pytest.approx(8.75)


def test_mux_serves_more_than_separate_devices(experiments: Any, data: Path, tmp_path: Path) -> None:
    """The steepest published workload, twenty seconds of it: the popular 7B has one device or a mesh."""
    args = experiments.parser("", 20.0).parse_args(["--data", str(data), "--out", str(tmp_path)])
    args.systems = ["mux-released", "spatial-fixed"]
    runs = experiments.Runs(tmp_path)
    problem = experiments.setting.synthetic(2.1, 20)
    experiments.run_cell(runs, "small", problem, "sharegpt", args)
    rows = {s: runs.find(experiments.key_of("small", s, args)) for s in args.systems}
    for row in rows.values():
        assert row["served"] == row["requests"] > 400
        assert row["refused"] == 0
    assert rows["mux-released"]["slo"]["3"] > rows["spatial-fixed"]["slo"]["3"] + 0.1
    assert rows["mux-released"]["throughput"]["llm-0"] > rows["spatial-fixed"]["throughput"]["llm-0"]
    assert "spatial-fixed" in experiments.table(rows)


def test_without_the_data_a_script_says_what_is_missing(
    experiments: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        experiments.setting.data(tmp_path)
    assert end.value.code == 0
    assert "skipped" in capsys.readouterr().err
