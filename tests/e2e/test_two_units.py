"""One daemon with two devices: each has its own pool and models, one door for both."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
import pytest
from support.live import live
from support.two_units import ask, devices, models, row, whole
from support.where import FIRST, GPU, SECOND, needs_two_devices

from muxd.admin.schemas import LoadModel, QuotaChange, UnloadModel
from muxd.errors import MuxdError

pytestmark = needs_two_devices


def test_two_devices_answer_as_one_does_each_on_its_own_core(tmp_path: Path) -> None:
    pins = {"a": FIRST, "b": SECOND, "c": ""}
    with live('[pool]\nbytes = "16M"\n' + models(tmp_path, dict.fromkeys(pins, "")), tmp_path) as daemon:
        alone = {model: ask(daemon, model) for model in pins}
        assert row(daemon, "a").device == ""
        assert "muxd_model_device" not in httpx.get(f"{daemon.url}/metrics").text
    with live(devices() + models(tmp_path, pins), tmp_path) as daemon:
        with ThreadPoolExecutor(6) as clients:
            asked = [model for model in pins for _ in range(4)]
            answers = list(clients.map(lambda model: ask(daemon, model), asked))
        assert answers == [alone[model] for model in asked]
        rows = {one.name: one for one in daemon.admin.models()}
        assert (rows["a"].device, rows["b"].device) == (FIRST, SECOND)
        assert rows["c"].device in (FIRST, SECOND)
        for process in daemon.admin.ps():
            if process.role == "worker":
                assert process.device == rows[process.model].device
                if GPU:
                    continue
                threads = os.listdir(f"/proc/{process.pid}/task")
                cores = {frozenset(os.sched_getaffinity(int(thread))) for thread in threads}
                assert frozenset({int(process.device[-1])}) in cores
                assert os.sched_getaffinity(process.pid) == {int(process.device[-1])}
        status = daemon.status()
        assert list(status.devices) == [FIRST, SECOND]
        assert status.pool.total_blocks == sum(pool.total_blocks for pool in status.devices.values())
        assert status.requests.served == len(asked)
        check_controls(daemon)
        assert whole(daemon)


def check_controls(daemon) -> None:  # type: ignore[no-untyped-def]
    """What muxctl asks and changes, on both devices."""
    metrics = httpx.get(f"{daemon.url}/metrics").text
    assert f'muxd_model_device{{device="{SECOND}",model="b"}} 1.0' in metrics
    assert f'muxd_device_free_blocks{{device="{FIRST}"}}' in metrics
    quotas = {one.model: one for one in daemon.admin.set_quota(QuotaChange("b", min="1M"))}
    assert (quotas["b"].device, quotas["b"].min_bytes, quotas["a"].min_bytes) == (SECOND, 1 << 20, 0)
    assert daemon.admin.set_policy("fcfs").policy == "fcfs"
    assert {mark.kind for trace in daemon.admin.trace() for mark in trace.marks} >= {"policy"}
    assert [trace.device for trace in daemon.admin.trace()] == [FIRST, SECOND]
    answer = httpx.post(f"{daemon.url}/v1/completions", json={"model": "b", "prompt": "x", "max_tokens": 2})
    (times,) = daemon.admin.why(answer.json()["id"])
    assert (times.model, times.state) == ("b", "served")
    with pytest.raises(MuxdError, match=f"no device 'cpu:7'; there are: {FIRST}, {SECOND}"):
        list(daemon.admin.load(LoadModel("b", device="cpu:7")))
    assert [step.stage for step in daemon.admin.unload(UnloadModel("b"))][-1] == "unloaded"
    assert [step.stage for step in daemon.admin.load(LoadModel("b", device=FIRST))][-1] == "ready"
    assert row(daemon, "b").device == FIRST
    assert ask(daemon, "b")
