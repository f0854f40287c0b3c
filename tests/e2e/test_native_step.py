"""One folder served four ways by one daemon on a CPU: as the file has it, int8, by torch, and refused."""

from collections.abc import Iterator

import httpx2 as httpx
import pytest
from support.live import LiveDaemon, live
from support.tiny import tiny_served

from muxd.kernels import native

pytestmark = pytest.mark.skipif(bool(native.missing()), reason=native.missing())

MODELS = {
    "file": "",
    "int8": 'weights = "int8"\n',
    "torch": 'cpu_step = "torch"\n',
    "refused": 'cpu_step = "torch"\nweights = "int8"\n',
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    folder = tiny_served(tmp_path_factory.mktemp("models") / "tiny", 3)
    text = '[server]\ndevice = "cpu"\n[pool]\nbytes = "4M"\n' + "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder}"\ndtype = "float32"\n{more}'
        for name, more in MODELS.items()
    )
    with live(text, tmp_path_factory.mktemp("native")) as daemon:
        yield daemon


def tokens(daemon: LiveDaemon, model: str, **sampling: object) -> list[int]:
    body = {"model": model, "prompt": "The quick brown fox jumps", "max_tokens": 24, "ignore_eos": True,
            "return_token_ids": True, "temperature": 0} | sampling  # fmt: skip
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


@pytest.mark.parametrize(
    "sampling",
    [
        {},
        {"temperature": 0.9, "seed": 5, "top_p": 0.9},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"logprobs": 3},
    ],
)
def test_native_and_torch_pick_the_same_tokens(daemon: LiveDaemon, sampling: dict[str, object]) -> None:
    assert tokens(daemon, "file", **sampling) == tokens(daemon, "torch", **sampling)


def test_what_computes_is_shown(daemon: LiveDaemon) -> None:
    series = httpx.get(f"{daemon.url}/metrics", timeout=60).text
    for model, step in (("file", "native"), ("int8", "native"), ("torch", "torch")):
        assert f'muxd_model_step{{model="{model}",step="{step}"}} 1.0' in series


def test_int8_is_smaller_and_answers(daemon: LiveDaemon) -> None:
    rows = {row.name: row for row in daemon.admin.models()}
    assert rows["int8"].weights_bytes < 0.5 * rows["file"].weights_bytes
    assert len(tokens(daemon, "int8")) == 24


def test_a_refusal_names_the_setting_and_harms_nobody(daemon: LiveDaemon) -> None:
    row = next(row for row in daemon.admin.models() if row.name == "refused")
    assert row.state == "failed"
    assert 'model.weights = "int8" needs the native step' in row.detail
