"""Four models on a device with memory for two: whoever is asked for wakes, requests wait for it and are told
the same as alone, and nothing is held twice. Real workers."""

import asyncio
from pathlib import Path

import pytest
from msgspec import structs
from support.daemon_here import played
from support.tiny import tiny_served

from muxd.config import Config, DeviceConfig, ModelConfig, ResidencyConfig, ServerConfig
from muxd.daemon import Daemon
from muxd.engine.request import Request
from muxd.engine.stream import TokenStream
from muxd.errors import Busy, ModelNotReady, ModelUnloaded, NotFound
from muxd.fleet import waker
from muxd.fleet.catalog import Entry
from muxd.messages import Sampling

POOL = 8 << 20
NAMES = ["a", "b", "c", "d"]


def made(root: Path, **residency: object) -> Daemon:
    folders = {name: tiny_served(root / name, seed) for seed, name in enumerate(NAMES)}
    weights = max((folder / "model.safetensors").stat().st_size for folder in folders.values())
    models = [ModelConfig(name, str(folder), dtype="float32") for name, folder in folders.items()]
    device = DeviceConfig("cpu:0", pool=str(POOL), memory=str(POOL + weights * 5 // 2))
    kept = {"host_memory": str(weights * 3 // 2), "least": 0.0, "patience": 0.3, **residency}
    return Daemon(
        Config(
            server=ServerConfig(port=0, socket=str(root / "s")), device=[device], model=models,
            residency=ResidencyConfig(**kept),  # type: ignore[arg-type]
        )
    )  # fmt: skip


def submit(daemon: Daemon, model: str, tokens: int = 8) -> TokenStream:
    return daemon.submit(Request("r", model, [5] * 8, tokens, Sampling(temperature=0.0), frozenset()))


async def read(stream: TokenStream) -> list[int]:
    return [token async for delta in stream for token in delta.tokens]


def states(daemon: Daemon) -> dict[str, str]:
    return {name: entry.state for name, entry in daemon.entries.items()}


def audit(daemon: Daemon) -> None:
    for site in daemon.sites.values():
        site.arena.ledger.audit()
        assert len(site.supervisors) <= 2
    shelved = [entry.shelved for entry in daemon.entries.values() if entry.shelved is not None]
    assert len(shelved) <= 1, "host memory has room for one"


def test_whoever_is_asked_for_wakes_and_answers_as_alone(tmp_path: Path) -> None:
    daemon = made(tmp_path)

    async def scene() -> None:
        assert sorted(states(daemon).values()) == ["asleep", "asleep", "ready", "ready"]
        alone = {name: await read(submit(daemon, name)) for name in NAMES}
        for _ in range(3):
            found = await asyncio.gather(*(read(submit(daemon, name)) for name in NAMES))
            assert dict(zip(NAMES, found, strict=True)) == alone
            audit(daemon)
        assert daemon.observer.outcomes == {"served": 16}
        kinds = {event.kind for event in daemon.events.since()}
        assert {"asleep", "woken"} <= kinds

    played(daemon, scene)
    assert all(entry.shelved is None for entry in daemon.entries.values())


def test_a_long_answer_is_cut_for_who_waits_and_goes_on_token_for_token(tmp_path: Path) -> None:
    daemon = made(tmp_path)

    async def scene() -> None:
        alone = await read(submit(daemon, "a", 600))
        for name in ("b", "c", "d"):
            await read(submit(daemon, name))
        streams = [submit(daemon, name, 600) for name in ("a", "b")]
        others = [submit(daemon, name) for name in ("c", "d")]
        first, *_ = await asyncio.gather(*map(read, [*streams, *others]))
        assert first == alone
        audit(daemon)

    played(daemon, scene)


def test_an_operator_may_have_it_sleep_wake_and_leave(tmp_path: Path) -> None:
    daemon = made(tmp_path)

    async def scene() -> None:
        name = next(name for name, state in states(daemon).items() if state == "ready")
        assert [step async for step in daemon.roster.sleep(name).watch()][-1].stage == "asleep"
        assert states(daemon)[name] == "asleep"
        with pytest.raises(Busy, match="asleep"):
            daemon.roster.sleep(name)
        assert [step async for step in daemon.roster.wake(name).watch()][-1].stage == "ready"
        assert len(await read(submit(daemon, name))) == 8
        async for _ in daemon.roster.sleep(name).watch():
            pass
        async for _ in daemon.roster.unload(name, now=False).watch():
            pass
        assert states(daemon)[name] == "unloaded"
        with pytest.raises(ModelUnloaded):
            submit(daemon, name)
        assert daemon.entries[name].lane is None
        audit(daemon)

    played(daemon, scene)


def test_a_model_that_cannot_wake_tells_those_who_wait_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waker, "_AGAIN", 0.2)
    daemon = made(tmp_path, host_memory="0")

    async def scene() -> None:
        name = next(name for name, state in states(daemon).items() if state == "asleep")
        file = tmp_path / name / "model.safetensors"
        whole = file.read_bytes()
        file.write_bytes(whole[:5000])
        with pytest.raises(ModelNotReady, match=f"{name} could not be woken: .*safetensors"):
            await read(submit(daemon, name))
        assert states(daemon)[name] == "asleep"
        file.write_bytes(whole)
        assert len(await read(submit(daemon, name))) == 8
        audit(daemon)

    played(daemon, scene)


@pytest.mark.parametrize("host_memory", ["0", "auto"])
def test_who_sleeps_while_its_weights_are_replaced_wakes_with_the_new_ones(
    tmp_path: Path, host_memory: str, caplog: pytest.LogCaptureFixture
) -> None:
    daemon = made(tmp_path, host_memory=host_memory)

    async def scene() -> None:
        alone = {name: await read(submit(daemon, name)) for name in NAMES}
        assert alone["a"] != alone["b"]
        name = next(name for name, state in states(daemon).items() if state == "ready")
        other = next(one for one in NAMES if one != name)
        async for _ in daemon.roster.sleep(name).watch():
            pass
        new = tmp_path / name / "new"
        new.write_bytes((tmp_path / other / "model.safetensors").read_bytes())
        new.replace(tmp_path / name / "model.safetensors")
        assert await read(submit(daemon, name)) == alone[other]
        assert [one.getMessage() for one in caplog.records if "read anew" in one.getMessage()] != []
        wakes = daemon.entries[name].wakes
        assert wakes.cold > 0, "it came from its file"

    played(daemon, scene)


def test_who_is_always_resident_never_sleeps(tmp_path: Path) -> None:
    daemon = made(tmp_path)
    daemon.entries["d"] = Entry(structs.replace(daemon.entries["d"].config, resident="always"))

    async def scene() -> None:
        assert states(daemon)["d"] == "ready"
        for name in ("a", "b", "c") * 2:
            await read(submit(daemon, name))
            assert states(daemon)["d"] == "ready"

    played(daemon, scene)


def test_a_pinned_model_stays_whoever_asks_until_it_is_unpinned(tmp_path: Path) -> None:
    daemon = made(tmp_path)

    async def scene() -> None:
        pinned = next(name for name, state in states(daemon).items() if state == "ready")
        others = [name for name in NAMES if name != pinned]
        daemon.roster.pin(pinned, True)
        daemon.roster.pin(pinned, True)
        for _ in range(2):
            await asyncio.gather(*(read(submit(daemon, name)) for name in others))
            assert daemon.entries[pinned].state == "ready"
            audit(daemon)
        assert [one.kind for one in daemon.events.since(model=pinned) if "pin" in one.kind] == ["pinned"]
        assert [one.kind for one in daemon.events.since(model=pinned) if one.kind == "asleep"] == []
        daemon.roster.pin(pinned, False)
        await asyncio.gather(*(read(submit(daemon, name)) for name in others for _ in range(2)))
        assert "asleep" in [one.kind for one in daemon.events.since(model=pinned)]
        with pytest.raises(NotFound, match="no model 'x'"):
            daemon.roster.pin("x", True)

    played(daemon, scene)
