"""The real AdminService behind a real Unix socket: quotas, policy, why and trace of a unit that works."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from support.played_unit import BLOCK, POOL, Bench

from muxd.admin.client import AdminClient
from muxd.admin.schemas import LoadModel, PinModel, PolicyState, QuotaChange, UnloadModel
from muxd.admin.server import AdminServer
from muxd.config import Config, ModelConfig
from muxd.errors import MuxdError
from muxd.fleet.reload import Reloaded
from muxd.fleet.reloader import Reloader, Source

T = TypeVar("T")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "muxd.sock")
    yield bench
    bench.arena.close()


def with_door(bench: Bench, test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        server = AdminServer(bench.service, bench.path)
        await server.start()
        try:
            await test()
        finally:
            await server.close()

    asyncio.run(main())


def test_quota_shows_what_is_held_and_what_is_borrowed(bench: Bench) -> None:
    async def test() -> None:
        bench.submit("a.1", "cmpl-1-0", tokens=100, prompt=40)
        a, b = await bench.ask(lambda client: client.quota())
        assert (a.model, a.weight, a.min_bytes, a.max_bytes, a.pool_bytes) == (
            "a.1", 2.0, 16 * BLOCK, POOL, POOL,
        )  # fmt: skip
        held = bench.arena.ledger.usage()["a.1"].blocks * BLOCK
        assert a.used_bytes == held > 16 * BLOCK
        assert 16 * BLOCK < a.quota_bytes < POOL  # the guarantee, and two thirds of the rest by weight
        assert a.borrowed_bytes == max(0, held - a.quota_bytes)
        assert (b.used_bytes, b.borrowed_bytes, b.cached_bytes, b.weight) == (0, 0, 0, 1.0)

    with_door(bench, test)


def test_a_pin_is_shown_and_told(bench: Bench) -> None:
    async def test() -> None:
        row = await bench.ask(lambda client: client.pin(PinModel("b_2", True)))
        assert (row.name, row.pinned) == ("b_2", True)
        rows, status = await bench.ask(lambda client: (client.models(), client.status()))
        assert ([one.pinned for one in rows], status.pinned) == ([False, True], 1)
        row = await bench.ask(lambda client: client.pin(PinModel("b_2", False)))
        assert not row.pinned
        with pytest.raises(MuxdError, match=r"no model 'c'; there are: a\.1, b_2"):
            await bench.ask(lambda client: client.pin(PinModel("c", True)))

    with_door(bench, test)


def test_a_changed_quota_holds_at_once(bench: Bench) -> None:
    """b_2 may not grow beyond 32 blocks; then it may, and the prompt that waited starts."""

    async def test() -> None:
        change = QuotaChange("b_2", min="64K", max="25%", weight=3.5)
        _, b = await bench.ask(lambda client: client.set_quota(change))
        assert (b.min_bytes, b.max_bytes, b.weight) == (8 * BLOCK, 32 * BLOCK, 3.5)
        bench.submit("b_2", "cmpl-1-0", tokens=8, prompt=16)  # 24 blocks with its look-ahead
        bench.submit("b_2", "cmpl-2-0", tokens=8, prompt=16)
        bench.step()
        assert bench.arena.ledger.usage()["b_2"].blocks == 20  # a row of them for the step that runs
        _, b = await bench.ask(lambda client: client.set_quota(QuotaChange("b_2", max="100%")))
        assert (b.min_bytes, b.weight) == (8 * BLOCK, 3.5)  # what was not named has stayed
        bench.step()  # the decode step that ran
        assert bench.arena.ledger.usage()["b_2"].blocks == 24  # all but the last row is shared
        kinds = [mark.kind for mark in bench.unit.journal.timeline.snapshot(60.0).marks]
        assert kinds.count("quota") == 2

    with_door(bench, test)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (QuotaChange("c", min="1K"), ("'c'", "a.1, b_2")),
        (QuotaChange("b_2", min="1x"), ("min", "'1x'", "10%", "25%")[:2]),
        (QuotaChange("b_2", max="2M"), ("max", "'2M'", str(POOL))),
        (QuotaChange("b_2", max="101%"), ("max", "'101%'")),
        (QuotaChange("b_2", min="512K", max="256K"), ("min", "'512K'", "'256K'")),
        (QuotaChange("a.1", max="64K"), ("min", "131072 bytes", "'64K'")),
        (QuotaChange("b_2", min="95%"), ("quota.min", "a.1 16", "b_2 121", "128")),
        (QuotaChange("b_2", weight=0.0), ("weight", "0.0", "above 0")),
        (QuotaChange("b_2", max="16K"), ("b_2", "one row")),
    ],
)
def test_a_quota_that_cannot_be_is_refused_with_its_field_and_limits(
    bench: Bench, change: QuotaChange, words: tuple[str, ...]
) -> None:
    before = bench.arena.ledger.usage()

    async def test() -> None:
        with pytest.raises(MuxdError) as caught:
            await bench.ask(lambda client: client.set_quota(change))
        assert [word for word in words if word not in caught.value.message] == [], caught.value.message

    with_door(bench, test)
    assert bench.arena.ledger.usage() == before
    assert bench.service.quota()[1].weight == 1.0


def test_a_body_that_is_none_names_its_field(bench: Bench) -> None:
    class Raw(AdminClient):
        def post(self, route: str, body: Any) -> None:
            self._call("POST", route, dict[str, Any], body)

    async def test() -> None:
        for route, body, word in (
            ("/v0/quota", {"model": "a.1", "mim": "1K"}, "mim"),
            ("/v0/quota", {"model": "a.1", "weight": "2"}, "weight"),
            ("/v0/quota", {"min": "1K"}, "model"),
            ("/v0/policy", {}, "policy"),
            ("/v0/policy", None, "POST /v0/policy"),
        ):
            with pytest.raises(MuxdError, match=word):
                await asyncio.to_thread(Raw(bench.path).post, route, body)

    with_door(bench, test)


def test_an_audit_finds_a_lost_block(bench: Bench) -> None:
    async def test() -> None:
        bench.submit("a.1", "cmpl-1-0", tokens=100, prompt=40)
        books = await bench.ask(lambda client: client.audit())
        assert (books.fault, books.total_blocks) == ("", 128)
        assert books.held_blocks == bench.arena.ledger.held("a.1") > 0
        bench.arena.ledger._free -= 1
        assert "lost" in (await bench.ask(lambda client: client.audit())).fault

    with_door(bench, test)


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (LoadModel("c"), ("no model 'c'", "a.1, b_2")),
        (LoadModel(ModelConfig("a.1", "/x")), ("two models are called 'a.1'",)),
        (LoadModel(ModelConfig("", "/x")), ("model.name", "empty")),
        (LoadModel(ModelConfig("c", "/x", max_queue=0)), ("model.max_queue (c)", "above 0")),
        (LoadModel(ModelConfig("c", "/nowhere", dtype="float32")), ("c", "/nowhere is not a folder")),
        (UnloadModel("c"), ("no model 'c'",)),
    ],
)
def test_what_cannot_be_loaded_is_refused_and_changes_nothing(
    bench: Bench, wanted: LoadModel | UnloadModel, words: tuple[str, ...]
) -> None:
    before = bench.arena.ledger.usage()

    def call(client: AdminClient) -> None:
        list(client.load(wanted) if isinstance(wanted, LoadModel) else client.unload(wanted))

    async def test() -> None:
        with pytest.raises(MuxdError) as caught:
            await bench.ask(call)
        assert [word for word in words if word not in caught.value.message] == [], caught.value.message
        assert [row.name for row in await bench.ask(lambda client: client.models())] == ["a.1", "b_2"]

    with_door(bench, test)
    assert bench.arena.ledger.usage() == before


def test_policy_changes_when_idle_and_only_then(bench: Bench) -> None:
    async def test() -> None:
        assert (await bench.ask(lambda client: client.policy())).policy == "mux"
        with pytest.raises(MuxdError, match=r"'lifo' is none of mux, temporal"):
            await bench.ask(lambda client: client.set_policy("lifo"))
        bench.submit("a.1", "cmpl-1-0")
        with pytest.raises(MuxdError):
            await bench.ask(lambda client: client.set_policy("spatial"))
        assert (await bench.ask(lambda client: client.status())).policy == "mux"
        bench.step()
        bench.step()
        state = await bench.ask(lambda client: client.set_policy("temporal"))
        assert state == PolicyState(
            "temporal", ["mux", "temporal", "spatial", "servers", "fcfs", "round_robin"]
        )
        assert (await bench.ask(lambda client: client.status())).policy == "temporal"

    with_door(bench, test)


def test_why_finds_every_kind_of_end(bench: Bench) -> None:
    async def test() -> None:
        bench.submit("a.1", "chatcmpl-served-0", http_id="a/b?c=1")
        for _ in range(2):
            bench.step(0.25)
        gone = bench.submit("a.1", "chatcmpl-gone-0", tokens=50)
        bench.step(0.25)
        gone.close()
        bench.step(0.25)
        satisfied = bench.submit("b_2", "chatcmpl-stop-0", tokens=50)
        bench.step(0.25)
        satisfied.close(served=True)
        with pytest.raises(MuxdError):
            bench.submit("b_2", "chatcmpl-long-0", prompt=500, http_id="long")
        for id, state in (("served", "served"), ("gone", "cancelled"), ("stop", "served")):
            (times,) = await bench.ask(lambda client, id=id: client.why(f"chatcmpl-{id}"))  # type: ignore[misc]
            assert times.state == state
            assert times.prefill == 0.25
        (times,) = await bench.ask(lambda client: client.why("a/b?c=1"))
        assert (times.total, times.ttft, times.decode, times.generated_tokens) == (0.5, 0.25, 0.25, 2)
        (times,) = await bench.ask(lambda client: client.why("long"))
        assert times.state == "refused"
        assert "500 tokens" in times.detail
        with pytest.raises(MuxdError, match=r"no request 'chatcmpl-9' .* last 10000 .* x-request-id"):
            await bench.ask(lambda client: client.why("chatcmpl-9"))

    with_door(bench, test)


def test_trace_and_goodput_come_from_the_unit(bench: Bench) -> None:
    async def test() -> None:
        bench.submit("a.1", "cmpl-1-0")
        bench.step(1.5)  # later than its ttft_slo
        bench.step()
        (trace,) = await bench.ask(lambda client: client.trace())
        assert [(span.model, span.phase, span.start) for span in trace.spans] == [
            ("a.1", "prefill", 50.0),
            ("a.1", "decode", 51.5),
        ]
        a, b = await bench.ask(lambda client: client.models())
        assert (a.config.ttft_slo, a.goodput) == (1.0, 0.0)
        assert (b.config.ttft_slo, b.goodput) == (0.0, None)
        assert msgspec.json.encode(trace)

    with_door(bench, test)


def test_targets_that_the_file_has_now_reach_the_scheduler(bench: Bench, tmp_path: Path) -> None:
    roster, service = bench.service.roster, bench.service
    old = Config(model=[entry.config for entry in roster.entries.values()])
    file = tmp_path / "muxd.toml"
    file.write_text(
        '[[model]]\nname = "a.1"\npath = "/nowhere"\nquota = { min = "128K", weight = 2.0 }\n'
        '[[model]]\nname = "b_2"\npath = "/nowhere"\nttft_slo = 0.25\ntpot_slo = 0.05\n'
    )
    reloader = Reloader(
        config=old, source=Source(file, {}), roster=roster, observer=service.observer, told={},
        wish=asyncio.Event(), events=service.events, set_policy=service.set_policy,
        set_quota=lambda model: None,
    )  # fmt: skip
    assert asyncio.run(reloader.reload()) == Reloaded(True, "configuration reloaded: note a.1, note b_2")
    configs = {name: lane.spec.config for name, lane in bench.unit.lanes.items()}
    targets = {name: (config.ttft_slo, config.tpot_slo) for name, config in configs.items()}
    assert targets == {"a.1": (0.0, 0.0), "b_2": (0.25, 0.05)}
