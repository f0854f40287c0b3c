"""What was learnt comes back as it was; what a file says that cannot be is left aside and harms nobody."""

import logging
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support.daemon_here import played
from support.lanes import lane_spec
from support.tiny import tiny_served

from muxd.clock import VirtualClock
from muxd.config import Config, ModelConfig, PoolConfig, ServerConfig
from muxd.daemon import Daemon
from muxd.engine.forecast import Forecast
from muxd.engine.learnt import MOST, LaneCosts, Learnt, Mean, Seen
from muxd.engine.scheduler import Scheduler
from muxd.engine.settings import Settings
from muxd.engine.shares import Shares
from muxd.fleet.learnt import Keeper, Record, decode, encode, file_of, read, write
from muxd.fleet.popularity import Popularity, Usual
from muxd.placement.rates import Watched
from muxd.placement.replanner import Watch
from muxd.placement.wakes import Wakes
from muxd.pool.ledger import Ledger

NAMES = ("a", "b", "c")
BLOCKS = 64
LOST = "it is learnt anew"
amounts = st.floats(0, MOST)
means = st.builds(lambda total, weight: Mean(min(total, weight * MOST), weight), amounts, amounts)
costs = st.builds(LaneCosts, amounts, amounts, amounts, amounts)
seen = st.builds(Seen, means, means, means, means)
learnt = st.builds(Learnt, st.none() | st.integers(0, 2**53), costs, seen)
watched = st.builds(Watched, amounts, amounts.map(lambda seconds: round(seconds, 3)))
lengths = st.tuples(amounts, amounts).map(lambda two: (two[0], min(two[1], two[0] * MOST)))
usual = st.builds(lambda rate, one, two: Usual(rate, *one, *two), watched, lengths, lengths)
wakes = st.builds(Wakes, amounts, amounts)
records = st.builds(Record, st.text(), st.text(), learnt, usual, wakes)
files = st.dictionaries(st.text(), records, max_size=4)


def scheduler(policy: str = "mux") -> Scheduler:
    ledger = Ledger(BLOCKS)
    for name in NAMES:
        ledger.add_model(name, 2, BLOCKS, row_tokens=4)
    lanes = [lane_spec(name, 50, 4, 2, 60, 8, 100, BLOCKS // 2) for name in NAMES]
    shares, forecast = Shares([50, 100]), Forecast({}, 64)
    return Scheduler(lanes, ledger, shares, Settings(), policy=policy, forecast=forecast)


@given(st.dictionaries(st.sampled_from([*NAMES, "gone"]), learnt), st.sampled_from(["mux", "spatial"]))
def test_a_scheduler_goes_on_with_what_another_has_learnt(told: dict[str, Learnt], policy: str) -> None:
    """Whatever it was told: what it then says is what the next one says."""
    first, second = scheduler(policy), scheduler(policy)
    first.take_up(told)
    said = first.learnt()
    second.take_up(said)
    assert second.learnt() == said
    assert said.keys() == set(NAMES)
    for name in set(NAMES) & told.keys():
        assert (said[name].costs, said[name].seen) == (told[name].costs, told[name].seen)
    if policy == "mux":
        quotas = [first.quota(name) for name in NAMES]
        assert sum(quotas) == BLOCKS
        assert min(quotas) >= 0


@given(st.dictionaries(st.sampled_from(NAMES), usual), st.integers(0, 10**6))
def test_rates_and_lengths_go_on_as_they_were(told: dict[str, Usual], now: int) -> None:
    first, second = Popularity(Watch(), now), Popularity(Watch(), now + 1000.0)
    first.take_up(told, now)
    said = first.records(now)
    second.take_up(said, now + 1000.0)
    assert second.records(now + 1000.0) == said == told
    assert all(demand.rate >= 0 for demand in second.look(NAMES, now + 1000.0).values())


@given(files)
def test_a_file_says_what_was_written(models: dict[str, Record]) -> None:
    assert decode(encode(models)) == models
    with TemporaryDirectory() as folder:
        path = Path(folder, "new", "x.learnt.json")
        write(path, models)
        assert read(path, decode, LOST) == models
        assert [one.name for one in path.parent.iterdir()] == [path.name]


@given(files, st.data())
def test_a_damaged_file_never_raises_and_what_is_read_of_it_can_be_taken_up(
    models: dict[str, Record], data: st.DataObject
) -> None:
    text = bytearray(encode(models))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    with TemporaryDirectory() as folder:
        path = Path(folder, "x")
        path.write_bytes(text)
        found = read(path, decode, LOST)
    told = [record.learnt for record in found.values()]
    scheduler().take_up(dict(zip(NAMES, told, strict=False)))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b'{"models": {}, "version": 2}',
        b'{"models": {}, "version": 1',
        b"[" * 100_000,
        b'{"models": {}, "version": 1, "more": 0}',
        b'{"models": {"a": {"path": "", "stamp": "", "learnt": {"quota": -1}, "usual": {}}}}',
        b'{"models": {"a": {"path": "", "stamp": "", "learnt": {"costs": {"pace": 1e10}}, "usual": {}}}}',
        b'{"models": {"a": {"path": "", "stamp": "", "learnt": {}, "usual": {"prompts": 1}}}}',
        b'{"models": {"a": {"path": "", "stamp": "", "usual": {}, "learnt": {"seen": {"real": {"total": 1}}}'
        b"}}}",
        b'{"models": {"a": {"path": "", "stamp": "", "learnt": {"costs": {"pace": NaN}}, "usual": {}}}}',
        b'{"models": {"a": {"path": "", "stamp": "", "learnt": {}, "usual": {}, "wakes": {"cold": -1}}}}',
        b"\xff\xfe",
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_in_the_log(
    tmp_path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x"
    path.write_bytes(text)
    assert read(path, decode, LOST) == {}
    assert [str(path) in one.getMessage() for one in caplog.records] == [True]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_file_from_before_wakes_were_learnt_is_as_good() -> None:
    text = b'{"models": {"a": {"path": "p", "stamp": "s", "learnt": {}, "usual": {}}}, "version": 1}'
    assert decode(text) == {"a": Record("p", "s", Learnt(), Usual())}


def test_no_file_is_no_word_and_a_folder_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path / "none", decode, LOST) == {}
    assert caplog.records == []
    assert read(tmp_path, decode, LOST) == {}
    assert len(caplog.records) == 1


def test_each_configuration_has_its_file_in_the_state_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}:/elsewhere")
    one, other = file_of(Path("/etc/a/muxd.toml")), file_of(Path("/etc/b/muxd.toml"))
    assert one != other
    assert one.parent == other.parent == tmp_path
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("MUXD_HOME", "/srv/muxd")
    assert file_of(Path("/etc/a/muxd.toml")) == Path("/srv/muxd") / one.name


def test_what_is_said_of_a_model_that_has_changed_is_left_out(tmp_path: Path) -> None:
    models = [ModelConfig(name, str(tiny_served(tmp_path / name, seed))) for seed, name in enumerate("ab")]
    server = ServerConfig(port=0, socket=str(tmp_path / "s"), device="cpu")
    daemon = Daemon(Config(server=server, pool=PoolConfig(bytes="1M"), model=models))

    async def scene() -> None:
        keeper = Keeper(
            path=tmp_path / "kept", entries=daemon.entries, sites=daemon.sites, popularity=daemon.popularity,
            clock=VirtualClock(daemon.clock.now()),
        )  # fmt: skip
        begun = keeper.records()
        (site,) = daemon.sites.values()
        whole = site.arena.ledger.total_blocks
        learnt = {
            "a": Learnt(whole - 8, LaneCosts(1.0, 2.0, 3.0, 4.0)),
            "b": Learnt(8, LaneCosts(5.0, 6.0, 7.0, 8.0)),
        }
        asked = Usual(Watched(60.0, 1000.0), 10.0, 100.0, 5.0, 500.0)
        told = {
            name: replace(one, learnt=learnt[name], usual=asked, wakes=Wakes(0.5, 2.0))
            for name, one in begun.items()
        }
        elsewhere = {name: replace(one, path="/elsewhere") for name, one in told.items()}
        keeper.give(elsewhere)
        assert keeper.records() == begun
        keeper.give({name: replace(one, stamp="of another shape") for name, one in told.items()})
        found = keeper.records()
        assert {name: one.learnt for name, one in found.items()} == {
            name: one.learnt for name, one in begun.items()
        }
        assert [one.usual for one in found.values()] == [asked, asked]
        assert [one.wakes for one in found.values()] == [Wakes(), Wakes()]
        keeper.give(told)
        assert keeper.records() == told
        assert site.unit.quota("b") == 8
        await keeper.save()
        assert read(keeper.path, decode, LOST) == told

    played(daemon, scene)
