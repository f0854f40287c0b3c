"""The reader of MuxServe's table: cells, holes, wrong cells, refusals; then the real table if it is there."""

from pathlib import Path

import pytest
from support.published import REAL, linear, needs_real, published, raw_table

from muxd.cost.estimate import Costs
from muxd.cost.published import Published
from muxd.errors import ConfigError


def test_a_cell_comes_back_in_seconds(tmp_path: Path) -> None:
    costs: Costs = published(tmp_path, raw_table())
    found = costs.prefill("llama-7b", 1, 60, 4, 64)
    assert found.seconds == pytest.approx(linear(60, 4, 64) / 1e3)
    assert found.source == "measured"
    assert costs.decode("llama-7b", 1, 60, 4, 64.0).source == "measured"
    assert (costs.models(), costs.degrees("llama-7b")) == (["llama-7b"], [1])
    assert costs.shares("llama-7b", 1) == [30, 60, 100]


def test_between_cells_it_is_interpolated_and_below_the_smallest_share_proportional(tmp_path: Path) -> None:
    costs = published(tmp_path, raw_table())
    between = costs.prefill("llama-7b", 1, 60, 3, 64)
    assert between.seconds == pytest.approx(linear(60, 3, 64) / 1e3)
    assert between.source == "interpolated"
    below = costs.decode("llama-7b", 1, 15, 8, 128)
    assert below.seconds == pytest.approx(2 * linear(30, 8, 128) / 1e3)
    assert below.source == "extrapolated"


def test_what_was_not_measured_is_a_hole(tmp_path: Path) -> None:
    def missing(share: int, batch: int, length: int) -> float:
        return -1 if (batch, length) == (8, 128) else linear(share, batch, length)

    costs = published(tmp_path, raw_table(prefill=missing))
    found = costs.prefill("llama-7b", 1, 100, 8, 128)
    assert found.source == "extrapolated"
    assert found.seconds == pytest.approx(linear(100, 8, 128) / 1e3), "the line goes on"


def test_a_wrong_cell_is_lowered_and_listed(tmp_path: Path) -> None:
    def spiked(share: int, batch: int, length: int) -> float:
        return 400.0 if (share, batch, length) == (100, 2, 64) else linear(share, batch, length)

    costs = published(tmp_path, raw_table(decoding=spiked))
    found = costs.decode("llama-7b", 1, 100, 2, 64)
    assert found.seconds <= linear(100, 2, 128) / 1e3
    assert found.source == "interpolated"
    (wrong,) = costs.wrong()
    assert (wrong.share, wrong.batch, wrong.length, wrong.phase) == (100, 2, 64, "decode")
    assert (wrong.published, wrong.used) == (0.4, found.seconds)


def test_refusals_name_model_degree_and_remedy(tmp_path: Path) -> None:
    costs = published(tmp_path, raw_table())
    with pytest.raises(ConfigError, match=r"no model 'gpt-2', only: llama-7b; use a roofline"):
        costs.prefill("gpt-2", 1, 100, 1, 32)
    with pytest.raises(ConfigError, match=r"llama-7b on 4 GPUs, only on 1: .*choose one of these"):
        costs.decode("llama-7b", 4, 100, 1, 32)
    with pytest.raises(ConfigError, match=r"llama-7b: share 0 must be 1 to 100"):
        costs.decode("llama-7b", 1, 0, 1, 32)
    with pytest.raises(ConfigError, match=r"llama-7b: batch 0"):
        costs.prefill("llama-7b", 1, 100, 0, 32)
    with pytest.raises(ConfigError, match=r"0 tokens must be at least 1"):
        costs.prefill("llama-7b", 1, 100, 1, 0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a table of latencies"),
        ('{"m": {"one": {}}}', r"not a table of latencies.*int"),
        ('{"m": {"1": {"30": {"1": {"32": {"prefill": 1}}}}}}', "decoding"),
        ('{"m": {"1": {}}}', r"m, 1 GPUs: shares, batches and lengths must be there"),
        ('{"m": {"1": {"30": {"1": {"32": {"prefill": 1, "decoding": -1}}}}}}', "decoding: not one cell"),
    ],
)
def test_a_broken_file_is_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "llama.json").write_text(text)
    with pytest.raises(ConfigError, match=reason) as caught:
        Published.read(tmp_path / "llama.json")
    assert str(tmp_path / "llama.json") in str(caught.value)


def test_a_missing_file_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: No such file.*MuxServe's repository"):
        Published.read(tmp_path / "none.json")


# ---- the real table -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> Published:
    return Published.read(REAL)


@needs_real
def test_golden_cells(real: Published) -> None:
    """LLaMA-7B on one GPU, prompts of 128 tokens: MuxServe's figure 3, in ms."""
    golden = {
        ("prefill", 30, 8): 214.894, ("prefill", 100, 8): 78.332, ("prefill", 100, 128): 1217.089,
        ("prefill", 60, 1): 17.575, ("decode", 100, 1): 11.49, ("decode", 30, 128): 43.89,
        ("decode", 60, 8): 12.675, ("decode", 100, 64): 16.553,
    }  # fmt: skip
    for (phase, share, batch), ms in golden.items():
        found = getattr(real, phase)("llama-7b", 1, share, batch, 128)
        assert 1e3 * found.seconds == pytest.approx(ms)
        assert found.source == "measured"


@needs_real
def test_what_it_covers(real: Published) -> None:
    degrees = {model: real.degrees(model) for model in real.models()}
    assert degrees == {
        "llama-7b": [1, 2, 4, 8], "llama-13b": [1, 2, 4, 8], "llama-30b": [2, 4], "llama-65b": [4, 8],
    }  # fmt: skip
    assert real.shares("llama-65b", 8) == [30, 40, 50, 60, 70, 80, 90, 100]
    # 13B on one GPU was not measured at 256 prompts of 512 tokens: the keys and values do not fit.
    assert real.decode("llama-13b", 1, 100, 256, 512).source == "extrapolated"


@needs_real
@pytest.mark.parametrize(
    ("model", "gpus", "share", "batch", "length", "published", "plausible"),
    [
        ("llama-30b", 4, 100, 64, 64, 230.9, 27.0),
        ("llama-13b", 2, 90, 64, 64, 143.0, 19.0),
        ("llama-30b", 2, 100, 32, 128, 108.8, 34.8),
        ("llama-13b", 4, 40, 64, 32, 110.5, 16.5),
        ("llama-65b", 4, 60, 64, 64, 184.1, 48.4),
        ("llama-30b", 4, 90, 64, 128, 118.0, 28.8),
    ],
)
def test_gross_decode_outliers_are_gone(
    real: Published,
    model: str,
    gpus: int,
    share: int,
    batch: int,
    length: int,
    published: float,
    plausible: float,
) -> None:
    found = real.decode(model, gpus, share, batch, length)
    assert found.source == "interpolated"
    assert 1e3 * found.seconds == pytest.approx(plausible, rel=0.03)
    listed = {(w.model, w.gpus, w.share, w.batch, w.length): w for w in real.wrong() if w.phase == "decode"}
    assert 1e3 * listed[model, gpus, share, batch, length].published == pytest.approx(published, abs=0.1)


@needs_real
def test_few_cells_are_wrong(real: Published) -> None:
    wrong = real.wrong()
    assert len(wrong) == 23, "of 8,994 that were measured"
    assert sum(w.published > 2 * w.used for w in wrong) == 9
