"""What an operator has set comes back, as far as the configuration says nothing newer."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from muxd import whole
from muxd.config import ModelConfig, QuotaConfig
from muxd.errors import BadRequest
from muxd.fleet.catalog import Entry
from muxd.fleet.learnt import read
from muxd.fleet.wishes import Said, Wish, Wishes, decode, encode

quotas = st.builds(QuotaConfig, st.text(), st.text(), st.floats(0.1, 9.0))
said = st.builds(Said, st.text(), quotas, st.sampled_from(["demand", "always"]))
wishes = st.builds(Wish, said, quotas, st.booleans())


class Guarantees:
    """Takes quotas as long as guarantees are no more than 100 % together."""

    def __init__(self, *configs: ModelConfig):
        self.entries = {config.name: Entry(config) for config in configs}

    def set(self, model: ModelConfig) -> None:
        others = (entry.quota.min for name, entry in self.entries.items() if name != model.name)
        if sum(int(least.rstrip("%")) for least in (*others, model.quota.min)) > 100:
            raise BadRequest(f"{model.name}: too much")
        self.entries[model.name].quota = model.quota

    def kept(self, path: Path) -> Wishes:
        return Wishes(path=path, entries=self.entries, set_quota=self.set, altered=asyncio.Event())


def config(name: str, least: str = "0", **more: object) -> ModelConfig:
    return ModelConfig(name, f"/models/{name}", quota=QuotaConfig(min=least), **more)  # type: ignore[arg-type]


@given(models=st.dictionaries(st.text(), wishes, max_size=4))
def test_a_file_says_what_was_written(models: dict[str, Wish]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "set"
        whole.write(path, encode(models))
        assert read(path, decode, "") == models


def test_what_was_set_is_there_after_a_restart_and_nothing_else_is_written(tmp_path: Path) -> None:
    async def scene() -> None:
        models = [config("a", "60%"), config("b", "10%"), config("c")]
        first = Guarantees(*models)
        kept = first.kept(tmp_path / "set")
        await kept.save()
        assert not kept.path.exists()
        first.set(replace(models[0], quota=QuotaConfig("5%", "50%", 2.0)))
        first.set(replace(models[1], quota=QuotaConfig("90%")))
        first.entries["b"].pinned = True
        await kept.save()
        assert set(read(kept.path, decode, "")) == {"a", "b"}
        again = Guarantees(*reversed(models))  # b comes before a has made room for it
        await again.kept(kept.path).take_up()
        assert {name: one.quota for name, one in again.entries.items()} == {
            name: one.quota for name, one in first.entries.items()
        }
        assert [name for name, one in again.entries.items() if one.pinned] == ["b"]

    asyncio.run(scene())


def test_what_the_configuration_says_since_holds(tmp_path: Path) -> None:
    async def scene() -> None:
        first = Guarantees(config("a", "10%"), config("b"), config("c"))
        for entry in first.entries.values():
            entry.pinned = True
            first.set(replace(entry.config, quota=QuotaConfig("20%")))
        kept = first.kept(tmp_path / "set")
        await kept.save()
        later = Guarantees(config("a", "30%"), replace(config("b"), path="/elsewhere"), config("c"))
        await later.kept(kept.path).take_up()
        assert [(one.quota.min, one.pinned) for one in later.entries.values()] == [
            ("30%", False), ("0", False), ("20%", True),
        ]  # fmt: skip

    asyncio.run(scene())


def test_a_quota_that_cannot_hold_any_more_is_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene() -> None:
        first = Guarantees(config("a"))
        first.set(replace(first.entries["a"].config, quota=QuotaConfig("60%")))
        kept = first.kept(tmp_path / "set")
        await kept.save()
        later = Guarantees(config("a"), config("b", "50%"))
        await later.kept(kept.path).take_up()
        assert later.entries["a"].quota.min == "0"

    asyncio.run(scene())
    assert "a: its quota is the configuration's, not what was set: a: too much" in caplog.text


def test_going_back_to_the_configuration_is_written_too(tmp_path: Path) -> None:
    async def scene() -> None:
        first = Guarantees(config("a"))
        kept = first.kept(tmp_path / "set")
        first.entries["a"].pinned = True
        await kept.save()
        first.entries["a"].pinned = False
        await kept.save()
        assert read(kept.path, decode, "") == {}

    asyncio.run(scene())
