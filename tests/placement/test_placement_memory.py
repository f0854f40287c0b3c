"""Memory: what fits, and sentences that name the model and the shortfall."""

import msgspec
import pytest
from support.placements import COSTS, GB, load

from muxd.errors import ConfigError
from muxd.messages import SAMPLED, Phases
from muxd.placement import memory
from muxd.placement.estimator import Estimator
from muxd.placement.memory import Budget
from muxd.placement.planner import layout_of, make_plan
from muxd.placement.problem import Gpus, Problem


def test_a_model_larger_than_every_mesh_is_named_with_what_it_lacks() -> None:
    problem = Problem((load("big", "qwen2.5-32b", 1.0),), Gpus("A100", 24 * GB, 2))
    with pytest.raises(ConfigError, match=r"big: needs \d+\.\d GB on each of 2 GPUs.*GB short"):
        Estimator(problem, COSTS)


def test_models_larger_than_the_cluster_together_are_refused_with_the_sum() -> None:
    models = tuple(load(f"m{i}", "qwen2.5-14b", 1.0) for i in range(6))
    with pytest.raises(ConfigError, match=r"the models need .* GB together.* GB short.*the largest is m0"):
        Estimator(Problem(models, Gpus("A100", 80 * GB, 2)), COSTS)


def test_what_fits_in_sum_but_not_in_pieces_names_a_model() -> None:
    """Three models of 0.6 devices each on two devices, none of which may be cut."""
    costs = COSTS.__class__("a100", {"llama-3-8b": COSTS._shapes["llama-3-8b"]})
    models = tuple(load(f"m{i}", "llama-3-8b", 1.0) for i in range(3))
    appraiser = Estimator(Problem(models, Gpus("A100", 32 * GB, 1, 2)), costs)
    for method in ("ours", "greedy"):
        with pytest.raises(ConfigError, match=r"m\d: no place left|no mesh group holds all models"):
            layout_of(method, appraiser)


def test_what_a_device_holds_adds_up() -> None:
    model, budget = load("a", "llama-3-8b", 1.0), Budget()
    problem = Problem((model,), Gpus("A100", 80 * GB, 8))
    for gpus in (1, 2, 4, 8):
        pool = memory.pool_bytes(problem, gpus, (0,), budget)
        assert pool == int(0.95 * 80 * GB) - memory.fixed(model, gpus, budget)
    # Weights are cut; contexts, graphs and logits are on every device.
    assert memory.fixed(model, 8, budget) > model.weights // 8 + budget.context
    assert memory.pool_bytes(problem, 8, (0,), budget) > memory.pool_bytes(problem, 1, (0,), budget)


def test_what_torch_takes_in_a_worker_is_counted_by_name() -> None:
    """Every stream a workspace, every kept set of graphs the memory of its largest step or prefill."""
    model, plain = load("a", "llama-3-8b", 1.0), Budget(streams=1, sets=1, prompt_sets=1)

    def more(phases: Phases, **changed: int) -> int:
        other = msgspec.structs.replace(plain, **changed)
        return memory.scratch(model, 1, other, phases) - memory.scratch(model, 1, plain, phases)

    step, prompt = memory.step(model, 1, plain), memory.prompt(model, 1, plain)
    assert prompt > step
    for phases in ("both", "prefill", "decode"):
        assert more(phases, streams=16) == 15 * plain.workspace
        assert more(phases, tables=plain.tables + 1000) == 1000
        assert more(phases, sets=5) == (0 if phases == "prefill" else 4 * step)
        assert more(phases, prompt_sets=3) == (0 if phases == "decode" else 2 * prompt)
    assert prompt > 1024 * (4096 + 3 * 14336) * 2
    assert memory.step(model, 1, plain) > 128 * (4096 + 3 * 14336 + 128256) * 2
    # 64 sequences are sampled as 32 are; a prompt's logits are there twice, in float32, too.
    sampled = memory.activations(model, 1, msgspec.structs.replace(plain, max_running=64))
    assert sampled == memory.activations(model, 1, msgspec.structs.replace(plain, max_running=SAMPLED))
    assert sampled > SAMPLED * 128256 * 6 + plain.prefill_tokens * (4096 + 3 * 14336) * 2
    few = msgspec.structs.replace(plain, max_running=8)
    assert memory.step(model, 1, few) < memory.step(model, 1, plain) / 2
    pair = msgspec.structs.replace(plain, workers=2)
    held = memory.fixed(model, 1, pair) - model.weights - 2 * (pair.context + pair.graphs)
    assert held == sum(memory.scratch(model, 1, pair, one) for one in ("prefill", "decode"))


def test_kv_heads_are_not_cut_below_one() -> None:
    model = load("a", "llama-3-8b", 1.0)  # 8 KV heads
    assert model.sequence(8) == model.sequence(1) // 8
    small = load("b", "llama-3.2-1b", 1.0)
    assert small.sequence(8) * 8 == small.sequence(1)


def test_the_cost_model_must_know_a_degree_the_host_has() -> None:
    class Wide:
        """Costs that know four devices only."""

        def __getattr__(self, name: str) -> object:
            return getattr(COSTS, name)

        def degrees(self, model: str) -> list[int]:
            return [4]

    problem = Problem((load("a", "llama-3-8b", 1.0),), Gpus("A100", 80 * GB, 2))
    with pytest.raises(ConfigError, match="a: its costs are known on 4 GPUs, a host has 2"):
        Estimator(problem, Wide())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"), [("rate", 0.0), ("rate", float("nan")), ("prompt", 0), ("output", -1), ("weight", 0)]
)
def test_values_no_model_can_have_are_named(field: str, value: float) -> None:
    model = msgspec.structs.replace(load("a", "llama-3-8b", 1.0), **{field: value})
    with pytest.raises(ConfigError, match=rf"model\.{field} \(a\)"):
        Estimator(Problem((model,), Gpus("A100", 80 * GB, 1)), COSTS)


def test_names_must_differ_and_be_there() -> None:
    twice = (load("a", "llama-3-8b", 1.0),) * 2
    with pytest.raises(ConfigError, match="two models are called 'a'"):
        Estimator(Problem(twice, Gpus("A100", 80 * GB, 1)), COSTS)
    with pytest.raises(ConfigError, match="no model to place"):
        Estimator(Problem((), Gpus("A100", 80 * GB, 1)), COSTS)


def test_a_small_pool_shrinks_batches_and_says_what_is_not_served() -> None:
    model = load("a", "llama-3-8b", 30.0)
    tight = make_plan("ours", Estimator(Problem((model,), Gpus("A100", 24 * GB, 1)), COSTS))
    roomy = make_plan("ours", Estimator(Problem((model,), Gpus("A100", 80 * GB, 1)), COSTS))
    assert tight.members[0].batch < roomy.members[0].batch
    assert tight.served < roomy.served <= 30
    assert tight.members[0].ttft is None


def test_cosines_are_as_long_as_the_longest_text_or_not_kept() -> None:
    model, budget = load("a", "llama-3-8b", 1.0), Budget(max_running=1)
    assert memory.tables(model, msgspec.structs.replace(budget, tables=0)) == 0

    def angles(positions: int) -> int:
        shape = msgspec.structs.replace(model.shape, max_positions=positions)
        return memory.tables(msgspec.structs.replace(model, shape=shape), budget) - budget.tables

    rows = [positions // 16 * 4 for positions in (1024, 4096)]
    assert [angles(1024), angles(4096)] == [
        rows[0] + 4 * 1024 * 128 * 2,
        rows[1] + 4 * 4096 * 128 * 2,
    ]
    assert angles(1 << 20) == (1 << 20) // 16 * 4 + 4 * (64 << 20)
