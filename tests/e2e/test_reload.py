"""SIGHUP reads the configuration again while streams run; SIGUSR1 and SIGUSR2 harm nobody."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
from support import leaks
from support.live import LiveDaemon
from support.shared import until
from support.tiny import byte_tokenizer, tiny_llama, tiny_served
from support.where import EVERYWHERE, Where, on

from muxd.admin.schemas import LoadModel, QuotaChange, UnloadModel
from muxd.config import ModelConfig

pytestmark = on(*EVERYWHERE)

LONG = 600  # tokens: seconds of decoding


def folder(root: Path, name: str, seed: int) -> Path:
    """A tiny model whose answers may be long."""
    path = tiny_served(root / name, seed)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    return path


def model(root: Path, name: str, more: str = "") -> str:
    return f'[[model]]\nname = "{name}"\npath = "{root / name}"\ndtype = "float32"\n{more}\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate("abcd"):
        folder(tmp_path, name, seed)
    return tmp_path


def text(*models: str, more: str = "") -> str:
    """``more`` of ``[scheduler]``. A worker that a test holds still does not hang."""
    return f'[pool]\nbytes = "16M"\n[scheduler]\nbatch_timeout = 300.0\n{more}\n{"".join(models)}'


def reload(daemon: LiveDaemon, config: str) -> str:
    """Write, ask, and wait for what systemd would hear; the event of it."""
    (daemon.folder / "muxd.toml").write_text(config)
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_ready()
    event = [one for one in daemon.admin.events() if one.kind.startswith("reload")][-1]
    return f"{event.kind}: {event.detail}"


def check_refused(daemon: LiveDaemon, config: str, *words: str) -> None:
    """The event and the line of the log have the words."""
    said = reload(daemon, config)
    assert said.startswith("reload refused: ")
    (line,) = [one for one in daemon.log.splitlines()[-3:] if "configuration not reloaded" in one][-1:]
    assert [word for word in words if word not in said or word not in line] == []


def states(daemon: LiveDaemon) -> dict[str, str]:
    return {row.name: row.state for row in daemon.admin.models()}


def minimum(daemon: LiveDaemon, name: str) -> int:
    return next(row.min_bytes for row in daemon.admin.quota() if row.model == name)


def stream(client: openai.OpenAI, name: str, tokens: int = LONG) -> Iterator[tuple[list[int], str | None]]:
    """Token ids and finish reason of every chunk."""
    chunks = client.completions.create(
        model=name, prompt="Once", stream=True, max_tokens=tokens, temperature=0,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )  # fmt: skip
    for chunk in chunks:
        yield getattr(chunk.choices[0], "token_ids", []), chunk.choices[0].finish_reason


def whole(client: openai.OpenAI, name: str, tokens: int = LONG) -> list[int]:
    return [token for ids, _ in stream(client, name, tokens) for token in ids]


def test_a_stream_goes_on_while_models_come_and_go_and_a_bad_file_is_refused(
    where: Where, root: Path
) -> None:
    first = text(model(root, "a"), model(root, "b"))
    with where.live(first, root) as daemon, daemon.client() as client:
        alone = whole(client, "a")
        list(
            daemon.admin.load(LoadModel(ModelConfig("d", str(root / "d"), dtype="float32")))
        )  # by hand: stays
        running = stream(client, "a")
        seen = [next(running)]
        workers = daemon.workers()
        os.kill(workers["a"], signal.SIGSTOP)  # the stream cannot end meanwhile
        fcfs = text(model(root, "a", "share = 60"), more='policy = "fcfs"')
        check_refused(daemon, fcfs, "muxd.toml", "scheduler.policy", "requests are being served")
        os.kill(workers["a"], signal.SIGCONT)

        second = text(model(root, "a", 'quota = { min = "1M" }\nshare = 60'), model(root, "c"))
        assert reload(daemon, second) == "reload: share a, quota a, unload b, add c"
        assert states(daemon) == {"a": "ready", "b": "unloaded", "c": "ready", "d": "ready"}
        assert minimum(daemon, "a") == 1 << 20
        assert next(row.share for row in daemon.admin.models() if row.name == "a") == 60

        bad = text(model(root, "a", 'quota = { min = "2M" }'))
        for broken, words in (
            (bad + "[", ("muxd.toml", "TOML")),
            (bad + "sher = 1", ("muxd.toml", "model[0]", "`sher`")),
            (bad + "share = 101", ("muxd.toml", "model.share", "101")),
            (bad.replace("16M", "32M"), ("muxd.toml", "pool.bytes", "restart muxd")),
            (bad + model(root, "nowhere"), ("muxd.toml", "model.path (nowhere)", "not a folder")),
            (text(), ("muxd.toml", "no [[model]] is left")),
        ):
            check_refused(daemon, broken, *words)
        assert minimum(daemon, "a") == 1 << 20
        assert states(daemon) == {"a": "ready", "b": "unloaded", "c": "ready", "d": "ready"}

        for number in (signal.SIGUSR1, signal.SIGUSR2):
            daemon.process.send_signal(number)
        until(lambda: "Current thread" in daemon.log or "most recent call first" in daemon.log)

        seen += running
        assert seen[-1][1] == "length"
        assert [token for ids, _ in seen for token in ids] == alone
        assert daemon.workers()["a"] == workers["a"]
        assert whole(client, "c", 8) != alone[:8]

        assert reload(daemon, text(model(root, "a"), model(root, "b"), more='policy = "fcfs"'))
        assert daemon.admin.policy().policy == "fcfs"
        assert states(daemon) == {"a": "ready", "b": "ready", "c": "unloaded", "d": "ready"}
        assert minimum(daemon, "a") == 0


def test_what_cannot_change_in_place_is_loaded_anew_unless_an_operator_has_unloaded_it(
    where: Where, root: Path
) -> None:
    with where.live(text(model(root, "a"), model(root, "b")), root) as daemon:
        before = daemon.workers()
        for pid in (before["a"], leaks.parent(before["a"])):  # as a terminal that hangs up tells all
            os.kill(pid, signal.SIGHUP)
        assert reload(daemon, text(model(root, "a"), model(root, "b"))) == "reload: no model changes"
        assert daemon.workers() == before
        list(daemon.admin.unload(UnloadModel("b")))
        changed = text(model(root, "a", "max_context = 100"), model(root, "b", "max_context = 200"))
        assert reload(daemon, changed) == "reload: renew a, renew b"
        assert daemon.workers()["a"] != before["a"]
        assert states(daemon) == {"a": "ready", "b": "unloaded"}
        list(daemon.admin.load(LoadModel("b")))
        lengths = {
            name: httpx.get(f"{daemon.url}/v1/models/{name}", timeout=60).json()["max_model_len"]
            for name in ("a", "b")
        }
        assert lengths == {"a": 100, "b": 200}
        assert reload(daemon, changed) == "reload: no model changes"
        byte_tokenizer(tiny_llama(root / "wide", head_dim=2048))  # of which no token fits a block
        new = model(root, "a"), model(root, "wide"), model(root, "c", "ttft_slo = 30.0")
        said = reload(daemon, text(*new))
        assert said.startswith("reload: unload b, renew a, add c; add wide failed: "), said
        assert states(daemon) == {"a": "ready", "b": "unloaded", "wide": "failed", "c": "ready"}
        httpx.post(
            f"{daemon.url}/v1/completions", json={"model": "c", "prompt": "x"}, timeout=60
        ).raise_for_status()
        assert (
            'muxd_goodput_requests_total{model="c"} 1.0'
            in httpx.get(f"{daemon.url}/metrics", timeout=60).text
        )


def test_guarantees_that_fit_only_together_change_places_and_those_that_cannot_hold_are_refused(
    where: Where, root: Path
) -> None:
    def guarantees(a: int, b: int) -> str:
        return text(*(model(root, name, f'quota = {{ min = "{least}M" }}') for name, least in
                      (("a", a), ("b", b))))  # fmt: skip

    with where.live(guarantees(12, 2), root) as daemon:
        for a, b in ((2, 12), (12, 2)):
            assert reload(daemon, guarantees(a, b)) == "reload: quota a, quota b"
            assert (minimum(daemon, "a"), minimum(daemon, "b")) == (a << 20, b << 20)
        list(daemon.admin.load(LoadModel(ModelConfig("d", str(root / "d"), dtype="float32"))))
        daemon.admin.set_quota(QuotaChange("d", min="2M"))
        check_refused(daemon, guarantees(12, 3), "muxd.toml", "model.quota.min", "106 % of the pool")
        assert (minimum(daemon, "a"), minimum(daemon, "b")) == (12 << 20, 2 << 20)


@pytest.mark.usefixtures("two_devices")
def test_a_model_that_is_pinned_elsewhere_moves(where: Where, root: Path) -> None:
    def pinned(device: str) -> str:
        return where.two_devices() + model(root, "a", f'device = "{device}"')

    with where.live(pinned(where.first), root) as daemon:
        assert reload(daemon, pinned(where.second)) == "reload: move a"
        (row,) = daemon.admin.models()
        assert (row.state, row.device) == ("ready", where.second)
        check_refused(daemon, pinned(where.second).replace("16M", "8M"), "[[device]]", "restart muxd")
