"""A device's peaks from one model measured on it, used for another model."""

import pytest

from muxd.cost.analytic import Roofline
from muxd.cost.learned import learned
from muxd.cost.peaks import Peak, Reach
from muxd.cost.profile import ModelProfile
from muxd.cost.sampled import profile_of
from muxd.cost.shapes import CATALOGUE, known

# A device that is nothing like a datasheet: two slow cores that share nothing.
TRUE = Peak("two cores", 150e9, 30e9, 30e9)
REACH = Reach(0.5, 1.0, 1.0, 1.0, 1.0, 0.9, 0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def measured() -> ModelProfile:
    """As `muxd profile` would write it, if the device were exactly so."""
    return profile_of(Roofline(TRUE, reach=REACH), "two cores", {"m": ("llama-3.2-1b", 1)}).models["m"]


@pytest.fixture(scope="module")
def costs(measured: ModelProfile) -> Roofline:
    found, reach = learned("this CPU", known("llama-3.2-1b"), measured)
    return Roofline(found, reach=reach)


def test_the_peaks_come_back(costs: Roofline) -> None:
    assert costs.peak.bandwidth == pytest.approx(TRUE.bandwidth, rel=0.01)
    assert costs.peak.flops == pytest.approx(TRUE.flops, rel=0.1)
    assert costs.reach.flops_exponent == pytest.approx(1.0, abs=0.02)
    assert costs.reach.bandwidth_exponent == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize("model", ["qwen2.5-0.5b", "smollm2-135m", "gemma-3-270m"])
@pytest.mark.parametrize("share", [50, 100])
def test_another_model_is_predicted(model: str, share: int, costs: Roofline) -> None:
    true = Roofline(TRUE, reach=REACH)
    for batch in (1, 8, 64):
        expected = true.decode(model, 1, share, batch, 128).seconds
        assert costs.decode(model, 1, share, batch, 128).seconds == pytest.approx(expected, rel=0.2)
        expected = true.prefill(model, 1, share, batch, 128).seconds
        assert costs.prefill(model, 1, share, batch, 128).seconds == pytest.approx(expected, rel=0.2)


def test_one_share_is_taken_as_proportional(measured: ModelProfile) -> None:
    from msgspec.structs import replace

    def last(grid):  # type: ignore[no-untyped-def]
        return replace(grid, shares=grid.shares[-1:], seconds=grid.seconds[-1:])

    single = replace(measured, prefill=last(measured.prefill), decode=last(measured.decode))
    _, reach = learned("this CPU", CATALOGUE["llama-3.2-1b"], single)
    assert (reach.flops_exponent, reach.bandwidth_exponent) == (1.0, 1.0)
