"""The roofline against numbers worked out by hand, and against what is known of a real device."""

import pytest

from muxd.cost.analytic import roofline
from muxd.cost.profile import Device, Profile, Shape
from muxd.cost.table import CostTable
from muxd.errors import ConfigError

LLAMA_7B = Shape(layers=32, kv_heads=32, head_dim=128, max_positions=4096, dtype="float16")
PARAMETERS = 6_738_000_000


@pytest.fixture(scope="module")
def cost() -> CostTable:
    profile = roofline(LLAMA_7B, PARAMETERS, 32, "a100")
    return CostTable(Profile(1, Device("a100", 100, [10, 100]), {"m": profile}))


def test_a_decode_step_alone_moves_the_weights_once(cost: CostTable) -> None:
    kv = 2 * 32 * 32 * 128 * 2  # bytes of one token, and the step's own token is read, too
    expected = 1.5e-3 + (PARAMETERS * 2 + kv) / (2.0e12 * 0.75)
    assert cost.decode("m", 1, 0, 100) == pytest.approx(expected)


def test_a_long_prefill_is_bound_by_arithmetic(cost: CostTable) -> None:
    attention = 4 * 32 * 32 * 128 * 1024 * (1024 / 2)
    expected = 1.5e-3 + (2 * PARAMETERS * 1024 + attention) / (312e12 * 0.6)
    assert cost.prefill("m", 1024, 0, 100) == pytest.approx(expected)


def test_it_is_near_what_muxserve_measured_on_an_a100(cost: CostTable) -> None:
    """Figure 3: decode at batch 1 takes 11.5 ms at 100 % and 16.8 at 30; prefill of 8 x 128, 78 and 215."""
    assert cost.decode("m", 1, 128, 100) == pytest.approx(11.5e-3, rel=0.1)
    assert cost.decode("m", 1, 128, 30) == pytest.approx(16.8e-3, rel=0.2)
    assert cost.prefill("m", 1024, 0, 100) == pytest.approx(78.3e-3, rel=0.1)
    assert cost.prefill("m", 1024, 0, 30) == pytest.approx(214.9e-3, rel=0.15)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'tpu': known are a100, h100, h200"):
        roofline(LLAMA_7B, PARAMETERS, 32, "tpu")
