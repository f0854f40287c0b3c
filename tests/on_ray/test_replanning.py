"""Models change their host where the work has gone: whatever fails on the way, nobody is lost and no memory
is promised twice; the files of the plan follow."""

import tomllib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from support.examples import examples
from support.placements import GB, load

from muxd.config import ModelConfig, QuotaConfig, SamplingConfig
from muxd.cost.peaks import CAPTURED, PEAKS
from muxd.errors import ConfigError
from muxd.placement.host_view import HostDevice, HostedModel, HostView
from muxd.placement.memory import Budget
from muxd.placement.replan import Policy
from muxd.ray.plan_text import beside, without
from muxd.ray.replanning import HostsReplanner, Order, _Parked

EAGER = Policy(steps=40, walks=1, least_gain=0.01, cooldown=0.0)
MEMORY, POOL = 80 * GB, 20 * GB
WEIGHTS = {"llama-3-8b": 16 * GB, "qwen2.5-14b": 30 * GB}


@dataclass
class World:
    """Hosts that do as they are told; ``failing`` says of whom not. Models are named by their size."""

    devices: Mapping[str, int]  # host -> how many
    served: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # place -> models
    rates: dict[str, float] = field(default_factory=dict)

    def views(self) -> dict[str, HostView]:
        found = {}
        for host, count in self.devices.items():
            names = [f"cuda:{number}" for number in range(count)]
            models = [
                HostedModel(
                    load(name, size_of(name), self.rates[name]), ModelConfig(name, f"/m/{name}"), device
                )
                for device in names
                for name in sorted(self.served.get((host, device), ()))
            ]
            devices = {name: HostDevice(MEMORY, POOL) for name in names}
            found[host] = HostView(devices, (25, 50, 75, 100), PEAKS["a100"], CAPTURED, Budget(), models)
        return found

    def carry_out(self, host: str, order: Order) -> bool:
        """Whether it could be: a muxd whose memory is full says no."""
        if order.load is None:
            for (at, _), models in self.served.items():
                if at == host:
                    models.discard(order.model)
            return True
        models = self.served.setdefault((host, order.device or "cuda:0"), set())
        if sum(WEIGHTS[size_of(one)] for one in models | {order.model}) > MEMORY - POOL:
            return False
        models.add(order.model)
        return True

    def named(self) -> dict[str, set[str]]:
        return {
            host: {m for (at, _), ms in self.served.items() if at == host for m in ms}
            for host in self.devices
        }

    def places(self, model: str) -> list[tuple[str, str]]:
        return [place for place, models in self.served.items() if model in models]

    def fits(self) -> bool:
        return all(
            sum(WEIGHTS[size_of(m)] for m in models) <= MEMORY - POOL for models in self.served.values()
        )


def size_of(name: str) -> str:
    return name.partition(" ")[0]


def crowded() -> World:
    """Everything that is asked for is at one host."""
    busy = {f"llama-3-8b {i}" for i in range(3)}
    world = World({"a": 1, "b": 1}, {("a", "cuda:0"): set(busy), ("b", "cuda:0"): {"qwen2.5-14b x"}})
    world.rates = {name: 9.0 for name in busy} | {"qwen2.5-14b x": 0.01}
    return world


def run(world: World, replanner: HostsReplanner, failing: Set[int] = frozenset()) -> dict[str, str]:
    """One look and all that follows from it. Model -> host that its table went to."""
    replanner.begin(world.views(), replanner.look(world.views(), 0.0), 0.0)
    moved, done = dict[str, str](), 0
    while replanner.busy:
        for host in world.devices:
            for order in replanner.orders(host):
                carried_out = done not in failing and world.carry_out(host, order)
                one = replanner.done(order.id, failed=not carried_out)
                if one is not None:
                    moved[one.config.name] = one.to
                done += 1
                assert done < 100
    return moved


def test_a_model_goes_where_there_is_room_to_compute_and_is_never_nowhere() -> None:
    world = crowded()
    replanner = HostsReplanner("t", EAGER)
    moves = replanner.look(world.views(), 0.0)
    assert moves
    replanner.begin(world.views(), moves, 0.0)
    (order,) = replanner.orders("b")
    assert order == replanner.orders("b")[0]  # told until it is done
    assert replanner.orders("a") == []
    assert order.load is not None
    world.carry_out("b", order)
    assert (moved := replanner.done(order.id)) is not None
    assert (moved.source, moved.to, moved.config.name) == ("a", "b", order.model)
    (leave,) = replanner.orders("a")
    assert (leave.model, leave.load) == (order.model, None)
    world.carry_out("a", leave)
    replanner.done(leave.id)
    assert world.places(order.model) == [("b", "cuda:0")]


def test_copies_and_those_that_stay_do_not_move() -> None:
    world = crowded()
    world.served["b", "cuda:0"] |= {"llama-3-8b 0"}  # a copy
    views = world.views()
    kept = [structs.replace(one, stays=one.name.endswith("1")) for one in views["a"].models]
    views["a"] = structs.replace(views["a"], models=kept)
    moves = HostsReplanner("t", EAGER).look(views, 0.0)
    assert set(moves) <= {"llama-3-8b 2", "qwen2.5-14b x"}


def test_one_host_or_none_has_nothing_to_plan() -> None:
    world = World({"a": 2}, {("a", "cuda:0"): {"llama-3-8b 0"}}, {"llama-3-8b 0": 50.0})
    assert HostsReplanner("t", EAGER).look(world.views(), 0.0) == {}
    assert HostsReplanner("t", EAGER).look({}, 0.0) == {}


def test_a_load_that_fails_leaves_everybody_where_they_were() -> None:
    world = crowded()
    before = {place: set(models) for place, models in world.served.items()}
    assert run(world, HostsReplanner("t", EAGER), {0}) == {}
    assert world.served == before


def test_who_finds_no_room_where_it_was_goes_where_there_is_some() -> None:
    """What a plan takes for enough is not: the place that it was parked for refuses, its own one is taken."""
    quiet = {name: 0.01 for name in ("qwen2.5-14b a1", "llama-3-8b a2", "qwen2.5-14b b1", "llama-3-8b b2")}
    quiet["llama-3-8b c2"] = 0.01
    world = World(
        {"a": 2, "b": 2, "c": 1},
        {
            ("a", "cuda:0"): set(), ("a", "cuda:1"): {"qwen2.5-14b a1", "llama-3-8b a2"},
            ("b", "cuda:0"): {"qwen2.5-14b b1", "llama-3-8b c2"}, ("b", "cuda:1"): set(),
            ("c", "cuda:0"): {"llama-3-8b c1"},
        },
        {**quiet, "llama-3-8b c1": 30.0},
    )  # fmt: skip
    replanner = HostsReplanner("t", EAGER)
    config = ModelConfig("llama-3-8b b2", "/m/llama-3-8b b2", device="cuda:0")
    replanner._parked[config.name] = _Parked("b", config, set())
    moved = None
    for _ in range(5):
        replanner.mend(world.views(), world.named())
        for host in world.devices:
            for order in replanner.orders(host):
                moved = replanner.done(order.id, failed=not world.carry_out(host, order)) or moved
    (place,) = world.places(config.name)
    assert place in (("a", "cuda:0"), ("b", "cuda:1"))
    assert moved is None if place[0] == "b" else moved is not None
    assert world.fits()


@st.composite
def worlds(draw: st.DrawFn) -> World:
    hosts = {name: draw(st.integers(1, 2)) for name in "abc"[: draw(st.integers(2, 3))]}
    places = [(host, f"cuda:{i}") for host, count in hosts.items() for i in range(count)]
    world = World(hosts)
    for place in places:
        sizes = draw(st.lists(st.sampled_from(sorted(WEIGHTS)), max_size=3))
        names, room = set[str](), MEMORY - POOL - 4 * GB
        for size in sizes:
            if (room := room - WEIGHTS[size]) >= 0:
                names.add(f"{size} {place[0]}{place[1][-1]}{len(names)}")
        world.served[place] = names
        world.rates |= {name: draw(st.sampled_from([0.01, 1.0, 8.0, 30.0])) for name in names}
    return world


@settings(max_examples=examples(30))
@given(world=worlds(), failing=st.sets(st.integers(0, 9), max_size=3))
def test_whatever_fails_nobody_is_lost(world: World, failing: set[int]) -> None:
    replanner = HostsReplanner("t", EAGER)
    run(world, replanner, failing)
    for _ in range(6):  # what was left is mended, when nothing fails any more: at one of five places at most
        replanner.mend(world.views(), world.named())
        for host in world.devices:
            for order in replanner.orders(host):
                replanner.done(order.id, failed=not world.carry_out(host, order))
    for model in world.rates:
        assert world.places(model), model
    assert world.fits()


@settings(max_examples=examples(20))
@given(world=worlds(), steps=st.integers(0, 6))
def test_given_up_in_the_midst_the_next_look_makes_it_whole(world: World, steps: int) -> None:
    files = {host: set(models) for host, models in world.named().items()}
    replanner = HostsReplanner("t", EAGER)
    replanner.begin(world.views(), replanner.look(world.views(), 0.0), 0.0)
    for _ in range(steps):
        told = [(host, order) for host in world.devices for order in replanner.orders(host)]
        if not told:
            break
        host, order = told[0]
        carried_out = world.carry_out(host, order)
        if (moved := replanner.done(order.id, failed=not carried_out)) is not None:
            files[moved.to].add(moved.config.name)
            files[moved.source].discard(moved.config.name)
    replanner.abandon()
    assert not replanner.busy
    for _ in range(6):
        replanner.mend(world.views(), files)
        for host in world.devices:
            for order in replanner.orders(host):
                moved = replanner.done(order.id, failed=not world.carry_out(host, order))
                if moved is not None:  # where it was there is no room any more
                    files[moved.to].add(moved.config.name)
                    files[moved.source].discard(moved.config.name)
    for model in world.rates:
        assert len(world.places(model)) == 1, model
    assert world.fits()


NAMES = st.text("abcde.-_ 'ü[]#\"", min_size=1, max_size=8)
CONFIGS = st.builds(
    ModelConfig,
    NAMES,
    st.just("/models/x"),
    share=st.integers(1, 100),
    system_prompt=st.sampled_from(["", '[[model]]\nname = "no"', "say #nothing"]),
    quota=st.builds(QuotaConfig, weight=st.sampled_from([1.0, 2.5])),
    sampling=st.builds(SamplingConfig, temperature=st.sampled_from([None, 0.5])),
)
HEAD = '# a fleet\n[pool]\nbytes = "16M"  # enough\n\n[scheduler]\noverbook = 10\n'


@settings(max_examples=examples(100))
@given(
    configs=st.lists(CONFIGS, max_size=4, unique_by=lambda one: one.name), more=CONFIGS, last=st.booleans()
)
def test_a_file_with_one_model_more_or_less(
    configs: list[ModelConfig], more: ModelConfig, *, last: bool
) -> None:
    text = HEAD
    for config in configs:
        text = beside(text, config)
    text += "\n[text]\nprocesses = 1 # one\n" if last else ""
    names = [one.name for one in configs]
    grown = beside(text, more)
    assert read(grown) == [*(name for name in names if name != more.name), more.name]
    assert grown.startswith(HEAD)
    assert rest(grown) == rest(text)
    for name in names:
        less = without(text, name)
        assert read(less) == [one for one in names if one != name]
        assert rest(less) == rest(text)


def read(text: str) -> list[str]:
    return [one["name"] for one in tomllib.loads(text).get("model", [])]


def rest(text: str) -> dict[str, Any]:
    return {key: value for key, value in tomllib.loads(text).items() if key != "model"}


def test_tables_within_a_models_go_with_it() -> None:
    text = (
        HEAD
        + '[[model]]\nname = "a"\npath = "/a"\n[model.sampling]\ntemperature = 0.5\n\n[text]\nprocesses = 1\n'
    )
    assert tomllib.loads(without(text, "a")) == tomllib.loads(HEAD + "[text]\nprocesses = 1\n")


def test_a_file_that_writes_models_another_way_is_left_alone() -> None:
    with pytest.raises(ConfigError, match="no table of 'a'"):
        without('model = [{name = "a", path = "/a"}]\n', "a")
    with pytest.raises(ConfigError, match="not valid TOML"):
        without("model = [", "a")
