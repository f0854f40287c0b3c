"""The roofline against numbers worked out by hand, and against what is known of a real device."""

import pytest
from msgspec.structs import replace

from muxd.cost.analytic import Roofline, roofline
from muxd.cost.estimate import Costs
from muxd.cost.peaks import CAPTURED, EAGER, peak
from muxd.cost.profile import Device, Profile, Shape
from muxd.cost.shapes import known
from muxd.cost.table import CostTable
from muxd.errors import ConfigError

LLAMA_7B = Shape(layers=32, kv_heads=32, head_dim=128, max_positions=4096, dtype="float16")
PARAMETERS = 6_738_000_000
FLOPS, BANDWIDTH = 312e12, 2.04e12


@pytest.fixture(scope="module")
def cost() -> CostTable:
    profile = roofline(LLAMA_7B, PARAMETERS, 32, "a100")
    return CostTable(Profile(1, Device("a100", 100, [10, 100]), {"m": profile}))


@pytest.fixture(scope="module")
def a100() -> Roofline:
    return Roofline("A100-80G")


# ---- as a profile -------------------------------------------------------------------------------------


def test_a_decode_step_alone_moves_the_weights_once(cost: CostTable) -> None:
    kv = 2 * 32 * 32 * 128 * 2  # bytes of one token, and the step's own token is read, too
    expected = 1.5e-3 + (PARAMETERS * 2 + kv) / (BANDWIDTH * EAGER.bandwidth)
    assert cost.decode("m", 1, 0, 100) == pytest.approx(expected)


def test_a_long_prefill_is_bound_by_arithmetic(cost: CostTable) -> None:
    attention = 4 * 32 * 32 * 128 * 1024 * (1024 / 2)
    expected = 1.5e-3 + (2 * PARAMETERS * 1024 + attention) / (FLOPS * EAGER.prefill_flops)
    assert cost.prefill("m", 1024, 0, 100) == pytest.approx(expected)


def test_it_is_near_what_muxserve_measured_on_an_a100(cost: CostTable) -> None:
    """Figure 3: decode at batch 1 takes 11.5 ms at 100 % and 16.8 at 30; prefill of 8 x 128, 78 and 215."""
    assert cost.decode("m", 1, 128, 100) == pytest.approx(11.5e-3, rel=0.1)
    assert cost.decode("m", 1, 128, 30) == pytest.approx(16.8e-3, rel=0.2)
    assert cost.prefill("m", 1024, 0, 100) == pytest.approx(78.3e-3, rel=0.1)
    assert cost.prefill("m", 1024, 0, 30) == pytest.approx(214.9e-3, rel=0.15)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--roofline 'tpu': known are a10, a100, .*; measure others"):
        roofline(LLAMA_7B, PARAMETERS, 32, "tpu")


# ---- tensor parallel ----------------------------------------------------------------------------------


def test_one_sequence_on_one_device_waits_for_the_bandwidth(a100: Roofline) -> None:
    large = known("llama-30b")
    moved = 2 * (large.body_parameters + large.head_parameters) + large.kv_bytes() * 101
    found = a100.decode("llama-30b", 1, 100, 1, 100)
    assert found.seconds == pytest.approx(moved / (BANDWIDTH * EAGER.bandwidth))
    assert found.source == "roofline"


def test_a_small_step_waits_for_the_host(a100: Roofline) -> None:
    """On eight devices a 7B's shard is moved in a millisecond; 32 layers are launched in twelve."""
    assert a100.decode("llama-7b", 8, 100, 1, 100).seconds == pytest.approx(32 * EAGER.decode_layer)
    captured = Roofline("A100-80G", reach=CAPTURED)
    assert (
        captured.decode("llama-7b", 8, 100, 1, 100).seconds < a100.decode("llama-7b", 8, 100, 1, 100).seconds
    )


def test_work_is_cut_and_reductions_come_on_top(a100: Roofline) -> None:
    m = known("llama-65b")
    alone, tokens = a100.prefill("llama-65b", 1, 100, 16, 512).seconds, 16 * 512
    for gpus in (2, 4, 8):
        moved = 2 * (gpus - 1) / gpus * tokens * 2 * m.hidden
        reduced = 2 * m.layers * (EAGER.allreduce + moved / (300e9 * EAGER.link))
        assert a100.prefill("llama-65b", gpus, 100, 16, 512).seconds == pytest.approx(alone / gpus + reduced)


def test_a_slow_link_costs_more() -> None:
    def part(device: str) -> float:
        costs = Roofline(device)
        single = costs.prefill("llama-13b", 1, 100, 8, 512).seconds
        return costs.prefill("llama-13b", 4, 100, 8, 512).seconds / single

    assert part("l40s") > 2 * part("a100")


def test_grouped_heads_read_less() -> None:
    """Eight KV heads instead of 32, and the context is a quarter of the bytes."""
    few = known("llama-3-8b")
    costs = Roofline("h200", {"few": few, "many": replace(few, kv_heads=32)}, CAPTURED)
    added = {
        name: costs.decode(name, 1, 100, 64, 4000).seconds - costs.decode(name, 1, 100, 64, 0).seconds
        for name in ("few", "many")
    }
    assert added["many"] == pytest.approx(4 * added["few"], rel=1e-3)


def test_devices_by_name() -> None:
    assert peak("A100-80G") is peak("a100")
    assert [peak(name).name for name in ("H100", "H200", "L40S")] == ["h100", "h200", "l40s"]
    faster = [
        Roofline(name).decode("llama-3-8b", 1, 100, 64, 1024).seconds for name in ("l40s", "a100", "h200")
    ]
    assert faster == sorted(faster, reverse=True)


def test_refusals_name_model_degree_and_remedy(a100: Roofline) -> None:
    costs: Costs = a100
    with pytest.raises(ConfigError, match=r"no model 'gpt-2', only: llama-7b.*give its shape"):
        costs.degrees("gpt-2")
    with pytest.raises(ConfigError, match=r"qwen2.5-0.5b on 4 GPUs, only on 1, 2: its 14 heads"):
        costs.prefill("qwen2.5-0.5b", 4, 100, 1, 10)
    with pytest.raises(ConfigError, match="share 101"):
        costs.decode("llama-7b", 1, 101, 1, 10)
