"""What a daemon has learnt of its models is there after a restart: a quota that moved, costs, rates."""

import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2 as httpx
from support.live import LiveDaemon, live
from support.shared import until
from support.tiny import tiny_served

from muxd.admin.schemas import PinModel, QuotaChange, SleepModel, WakeModel
from muxd.fleet.learnt import Record, decode


def kept(folder: Path) -> dict[str, Record]:
    (file,) = folder.glob("muxd-*.learnt.json")
    return decode(file.read_bytes())


def quotas(daemon: LiveDaemon) -> dict[str, int]:
    return {row.model: row.quota_bytes // 8192 for row in daemon.admin.quota()}


def test_a_quota_that_moved_is_kept_and_a_damaged_file_is_left_aside(tmp_path: Path) -> None:
    folders = {name: tiny_served(tmp_path / name, seed) for seed, name in enumerate("ab")}
    models = "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder}"\nprefix_cache = false\n'
        for name, folder in folders.items()
    )
    text = f'[pool]\nbytes = "512K"\n[scheduler]\nadapt_period = 0.2\n{models}'
    with live(text, tmp_path) as daemon:
        first = quotas(daemon)
        over: list[bool] = []

        def ask(number: int) -> None:
            body = {"model": "a", "prompt": [5 + number] * 200, "max_tokens": 250, "ignore_eos": True}
            while not over:
                httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=120).raise_for_status()

        with ThreadPoolExecutor(12) as clients:
            asked = [clients.submit(ask, number) for number in range(12)]
            try:
                until(lambda: quotas(daemon)["a"] > first["a"])
            finally:
                over.append(True)
        for one in asked:
            one.result()
    said = kept(tmp_path)
    assert said["a"].learnt.quota is not None
    assert said["a"].learnt.quota > first["a"]
    assert said["a"].learnt.costs.step_seconds > 0
    assert said["a"].usual.arrivals > 1
    assert json.dumps([5] * 3)[1:-1] not in next(tmp_path.glob("*.learnt.json")).read_text()
    with live(text, tmp_path) as daemon:
        assert quotas(daemon) == {name: one.learnt.quota for name, one in said.items()}
    again = kept(tmp_path)
    assert {name: one.learnt for name, one in again.items()} == {
        name: one.learnt for name, one in said.items()
    }
    (file,) = tmp_path.glob("*.learnt.json")
    file.write_bytes(file.read_bytes()[:-9])
    with live(text, tmp_path) as daemon:
        assert quotas(daemon) == first
        assert sum(f"{file} is not used" in line for line in daemon.log.splitlines()) == 1


def test_what_its_wakes_took_is_shown_and_kept(tmp_path: Path) -> None:
    text = f'[pool]\nbytes = "1M"\n[[model]]\nname = "a"\npath = "{tiny_served(tmp_path / "a")}"\n'

    def detail(daemon: LiveDaemon) -> str:
        assert [step.stage for step in daemon.admin.sleep(SleepModel("a"))][-1] == "asleep"
        (row,) = daemon.admin.models()
        return row.detail

    with live(text, tmp_path) as daemon:
        assert detail(daemon) == "in host memory"
        assert [step.stage for step in daemon.admin.wake(WakeModel("a"))][-1] == "ready"
    wakes = kept(tmp_path)["a"].wakes
    assert wakes.parked > 0
    assert wakes.cold == 0
    with live(text, tmp_path) as daemon:
        assert detail(daemon) == f"in host memory; wakes in {wakes.parked:.2g} s"
    assert kept(tmp_path)["a"].wakes == wakes


def test_what_an_operator_has_set_is_kept_even_by_a_daemon_that_is_killed(tmp_path: Path) -> None:
    text = f'[pool]\nbytes = "1M"\n[[model]]\nname = "a"\npath = "{tiny_served(tmp_path / "a")}"\n'
    with live(text, tmp_path) as daemon:
        daemon.admin.set_quota(QuotaChange("a", min="256K", max="512K"))
        daemon.admin.pin(PinModel("a", pinned=True))
        until(lambda: any(b'"pinned":true' in file.read_bytes() for file in tmp_path.glob("muxd-*.set.json")))
        daemon.terminate(signal.SIGKILL)
    with live(text, tmp_path) as daemon:
        (row,) = daemon.admin.quota()
        assert (row.min_bytes, row.max_bytes) == (256 << 10, 512 << 10)
        assert [model.pinned for model in daemon.admin.models()] == [True]
    with live(f'{text}resident = "demand"\nquota = {{ max = "60%" }}\n', tmp_path) as daemon:
        (row,) = daemon.admin.quota()
        assert row.min_bytes == 0
        assert [model.pinned for model in daemon.admin.models()] == [False]
