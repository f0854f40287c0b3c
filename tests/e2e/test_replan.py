"""Popularity shifts in a live daemon: a model moves to where there is room, and the record says why."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from support import costs
from support.live import LiveDaemon
from support.two_units import ask, models, row, whole
from support.where import EVERYWHERE, Where, on

from muxd.admin.schemas import MoveModel
from muxd.cost.profile import FORMAT, Device, Profile
from muxd.errors import MuxdError
from muxd.fleet.events import Event

pytestmark = pytest.mark.usefixtures("two_devices")

RATES = {"a": 0.02, "b": 0.02, "c": 9.0}


def config(where: Where, root: Path, placement: str, rates: dict[str, float] = RATES, room: float = 0) -> str:
    """By the profile a device serves 2.5 requests of twenty tokens a second. ``c`` is expected to be asked
    for most, so ``a`` and ``b`` begin together. ``room``: how many models each device has memory for."""
    slow = {name: costs.model(prefill=0.02, decode=0.01) for name in rates}
    profile = Profile(FORMAT, Device("hand", 1, [50, 100]), slow)
    (root / "cost.json").write_bytes(msgspec.json.encode(profile))
    tables = models(where, root, dict.fromkeys(rates, "")).split("[[model]]\n")
    shown = "".join(f"[[model]]\n{table}rate = {rates[table[8]]}\n" for table in tables[1:])
    weights = (root / "a" / "model.safetensors").stat().st_size
    memory = (16 << 20) + int(room * where.pages(weights)) if room else 0
    return f'[placement]\nprofile = "cost.json"\n{placement}\n{where.two_devices(memory=memory)}{shown}'


class Clients:
    """Ask for ``models`` without a pause while the block runs; every answer must be the model's own."""

    def __init__(self, daemon: LiveDaemon, models: str):
        self.daemon, self.models, self.over, self.served = daemon, models, threading.Event(), 0
        self.enough = threading.Event()  # answers for a rate to be measured by
        self.alone = {row.name: ask(daemon, row.name) for row in daemon.admin.models()}

    def __enter__(self) -> "Clients":
        self._pool = ThreadPoolExecutor(2 * len(self.models))
        self._asked = [self._pool.submit(self._ask, model) for model in self.models * 2]
        return self

    def _ask(self, model: str) -> int:
        count = 0
        while not self.over.is_set():
            assert ask(self.daemon, model) == self.alone[model]
            count += 1
            if count == 10:
                self.enough.set()
        return count

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._pool.shutdown()
        self.served = sum(one.result() for one in self._asked) + len(self.alone)


def until(daemon: LiveDaemon, *kinds: str) -> Event:
    """The first event of one of the kinds."""
    return next(one for one in daemon.admin.follow() if one.kind in kinds)


def until_it_pays(daemon: LiveDaemon) -> None:
    """What a model was expected to be asked for goes as rates are measured, sooner on a quiet machine."""
    looks = (daemon.admin.replan(dry_run=True) for _ in range(1000))
    assert any(look.adopt and look.moves for look in looks), "no plan was ever worth it"


@on(*EVERYWHERE)
def test_a_shift_of_popularity_moves_a_model_once_and_says_why(where: Where, tmp_path: Path) -> None:
    with where.live(config(where, tmp_path, "period = 2.0\ncooldown = 3600.0"), tmp_path) as daemon:
        places = {model: row(daemon, model).device for model in "abc"}
        assert places["a"] == places["b"] != places["c"]
        with Clients(daemon, "ab") as clients:
            moved = until(daemon, "moved", "move failed")
        assert (moved.kind, moved.model in "ab", moved.device) == ("moved", True, places["c"])
        told = daemon.admin.events()
        plan = next(one for one in told if one.kind == "replan" and "adopt" in one.detail)
        assert f"{moved.model} {places['a']} to {places['c']}" in plan.detail
        numbers = plan.numbers
        # Against each other: how many answers a second the pair gives depends on who else computes here.
        assert numbers["rate of a"] + numbers["rate of b"] > numbers["rate of c"]
        assert numbers["gain"] > 0
        assert [one.kind for one in told].count("moving") == 1
        requests = daemon.status().requests
        assert (requests.served, requests.failed, requests.refused) == (clients.served, 0, 0)
        assert whole(daemon)


@on(*EVERYWHERE)
def test_two_full_devices_swap_models_and_the_quieter_one_waits(where: Where, tmp_path: Path) -> None:
    """Memory for two models each and no third: one of the popular pair changes places with a quiet one."""
    text = config(where, tmp_path, "replan = false\nperiod = 1.0", dict.fromkeys("abcd", 1.0), room=2.25)
    with where.live(text, tmp_path) as daemon:
        places = {model: row(daemon, model).device for model in "abcd"}
        pair = "".join(model for model in "abcd" if places[model] == places["a"])
        assert len(pair) == 2
        with Clients(daemon, pair) as clients:
            assert clients.enough.wait(120)
            until_it_pays(daemon)
            with ThreadPoolExecutor(1) as pool:
                asked = pool.submit(daemon.admin.replan)
                quiet = until(daemon, "moving").model  # parked: who asks for it now waits
                assert ask(daemon, quiet) == clients.alone[quiet]
                done = asked.result()
            assert (done.adopt, set(done.moves) - set(pair)) == (True, {quiet})
            (loud,) = set(done.moves) & set(pair)
        for model in (loud, quiet):
            assert row(daemon, model).device != places[model]
        moves = [(one.kind, one.model) for one in daemon.admin.events() if one.kind in ("moving", "moved")]
        assert moves == [("moving", quiet), ("moving", loud), ("moved", loud), ("moved", quiet)]
        requests = daemon.status().requests
        assert (requests.served, requests.failed, requests.refused) == (clients.served + 1, 0, 0)
        assert whole(daemon)


@on("cpu")
def test_nothing_moves_by_itself_where_it_is_off_and_muxctl_shows_and_does_it(
    where: Where, tmp_path: Path
) -> None:
    with where.live(config(where, tmp_path, "replan = false\nperiod = 1.0"), tmp_path) as daemon:
        places = {model: row(daemon, model).device for model in "abc"}
        with Clients(daemon, "ab") as clients:
            assert clients.enough.wait(120)
            until_it_pays(daemon)
            shown = muxctl(daemon, "replan", "--dry-run")
            assert "would move; it pays" in shown
            assert {model: row(daemon, model).device for model in "abc"} == places
            done = daemon.admin.replan()
        assert done.adopt
        (model,) = done.moves
        assert row(daemon, model).device == places["c"]
        assert "replan" in muxctl(daemon, "events")
        assert "moved" in muxctl(daemon, "events", "--model", model)


def muxctl(daemon: LiveDaemon, *arguments: str) -> str:
    command = [sys.executable, "-m", "muxd.cli.muxctl", *arguments, "--socket", str(daemon.socket)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=True).stdout


@on("cpu")
def test_one_device_has_nothing_to_plan(where: Where, tmp_path: Path) -> None:
    with where.live(models(where, tmp_path, {"a": ""}), tmp_path) as daemon:
        with pytest.raises(MuxdError, match="there is one device: nothing to plan"):
            daemon.admin.replan()
        with pytest.raises(MuxdError, match=f"there is no device '{where.second}'"):
            list(daemon.admin.move(MoveModel("a", where.second)))
        assert {one.device for one in daemon.admin.events()} == {""}
