"""One daemon with two devices: each has its own pool and models, one door for both."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
from support.live import LiveDaemon
from support.two_units import ask, models, row, whole
from support.where import EVERYWHERE, Where, on

from muxd.admin.schemas import LoadModel, QuotaChange, UnloadModel
from muxd.errors import MuxdError

pytestmark = [on(*EVERYWHERE), pytest.mark.usefixtures("two_devices")]


def test_two_devices_answer_as_one_does_each_on_its_own_core(where: Where, tmp_path: Path) -> None:
    first, second = where.first, where.second
    pins = {"a": first, "b": second, "c": ""}
    one = '[pool]\nbytes = "16M"\n' + models(where, tmp_path, dict.fromkeys(pins, ""))
    with where.live(one, tmp_path) as daemon:
        alone = {model: ask(daemon, model) for model in pins}
        assert row(daemon, "a").device == ""
        assert "muxd_model_device" not in httpx.get(f"{daemon.url}/metrics", timeout=60).text
    with where.live(where.two_devices() + models(where, tmp_path, pins), tmp_path) as daemon:
        with ThreadPoolExecutor(6) as clients:
            asked = [model for model in pins for _ in range(4)]
            answers = list(clients.map(lambda model: ask(daemon, model), asked))
        assert answers == [alone[model] for model in asked]
        rows = {one.name: one for one in daemon.admin.models()}
        assert (rows["a"].device, rows["b"].device) == (first, second)
        assert rows["c"].device in (first, second)
        for process in daemon.admin.ps():
            if process.role == "worker":
                assert process.device == rows[process.model].device
                if where.gpu:
                    continue
                threads = os.listdir(f"/proc/{process.pid}/task")
                cores = {frozenset(os.sched_getaffinity(int(thread))) for thread in threads}
                assert frozenset({int(process.device[-1])}) in cores
                assert os.sched_getaffinity(process.pid) == {int(process.device[-1])}
        status = daemon.status()
        assert list(status.devices) == [first, second]
        assert status.pool.total_blocks == sum(pool.total_blocks for pool in status.devices.values())
        assert status.requests.served == len(asked)
        check_controls(daemon, first, second)
        assert whole(daemon)


def check_controls(daemon: LiveDaemon, first: str, second: str) -> None:
    """What muxctl asks and changes, on both devices."""
    metrics = httpx.get(f"{daemon.url}/metrics", timeout=60).text
    assert f'muxd_model_device{{device="{second}",model="b"}} 1.0' in metrics
    assert f'muxd_device_free_blocks{{device="{first}"}}' in metrics
    quotas = {one.model: one for one in daemon.admin.set_quota(QuotaChange("b", min="1M"))}
    assert (quotas["b"].device, quotas["b"].min_bytes, quotas["a"].min_bytes) == (second, 1 << 20, 0)
    assert daemon.admin.set_policy("fcfs").policy == "fcfs"
    assert {mark.kind for trace in daemon.admin.trace() for mark in trace.marks} >= {"policy"}
    assert [trace.device for trace in daemon.admin.trace()] == [first, second]
    answer = httpx.post(
        f"{daemon.url}/v1/completions", json={"model": "b", "prompt": "x", "max_tokens": 2}, timeout=60
    )
    (times,) = daemon.admin.why(answer.json()["id"])
    assert (times.model, times.state) == ("b", "served")
    with pytest.raises(MuxdError, match=f"no device 'cpu:7'; there are: {first}, {second}"):
        list(daemon.admin.load(LoadModel("b", device="cpu:7")))
    assert [step.stage for step in daemon.admin.unload(UnloadModel("b"))][-1] == "unloaded"
    assert [step.stage for step in daemon.admin.load(LoadModel("b", device=first))][-1] == "ready"
    assert row(daemon, "b").device == first
    assert ask(daemon, "b")
