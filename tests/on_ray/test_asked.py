"""What routing reads of a request: every path of muxd has a reach, bodies give model and beginnings."""

import gzip
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muxd.api.routes import ROUTES
from muxd.ray.asked import Asked, asked, reach_of


def of_body(path: str = "/v1/chat/completions", coding: str = "", **body: Any) -> Asked:
    data = json.dumps(body).encode()
    found = asked("POST", path, "", gzip.compress(data) if coding == "gzip" else data, coding)
    assert found is not None
    return found


def test_every_path_has_its_reach() -> None:
    reaches = Counter(reach_of(route) for route in ROUTES)
    assert set(reaches) == {"model", "any", "all", "search", "own", "host"}
    about_a_host = {route.path for route in ROUTES if reach_of(route) == "host"}
    assert about_a_host == {
        "/metrics", "/running", "/unload", "/api/models/unload", "/api/models/unload/{id:.+}", "/api/events",
        "/api/models/load/{id:.+}", "/api/models/sleep/{id:.+}", "/api/models/wake/{id:.+}",
        "/api/models/move/{id:.+}", "/api/models/pin/{id:.+}", "/api/models/unpin/{id:.+}", "/page/{file}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "target", "found"),
    [
        ("GET", "/health", Asked("own")),
        ("HEAD", "/health/", Asked("own")),
        ("GET", "/health/org/model", Asked("model", "org/model")),
        ("GET", "/v1/models/a.b", Asked("model", "a.b")),
        ("GET", "/v1/models/org%2Fmodel", Asked("model", "org/model")),
        ("GET", "/models", Asked("all")),
        ("GET", "/tokenizer_info?model=a&x=y", Asked("model", "a")),
        ("DELETE", "/v1/requests/cmpl-1", Asked("search")),
        ("GET", "/v1/chat/completions", None),
        ("POST", "/nothing", None),
    ],
)
def test_paths(method: str, target: str, found: Asked | None) -> None:
    path, _, query = target.partition("?")
    assert asked(method, path, query, b"", "") == found


def test_the_model_is_read_of_every_body_also_a_compressed_one() -> None:
    for route in ROUTES:
        if route.body is not None:
            assert of_body(route.path, model="m").model == "m"
    assert of_body(coding="gzip", model="m").model == "m"


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'{"model": 3}', b"\xff", b"[" * 100_000])
def test_a_body_that_cannot_be_read_is_for_any_host_to_refuse(body: bytes) -> None:
    assert asked("POST", "/v1/completions", "", body, "") == Asked("model")
    assert asked("POST", "/v1/completions", "", body, "gzip") == Asked("model")


@given(st.text(max_size=3000), st.text(max_size=600), st.text(max_size=600))
def test_prompts_that_begin_alike_have_keys_that_begin_alike(begin: str, one: str, other: str) -> None:
    keys = [of_body(model="m", prompt=begin + end).keys for end in (one, other)]
    length = len(json.dumps(begin).encode()) - 2
    assert keys[0][: length // 128] == keys[1][: length // 128]
    assert len(keys[0]) <= 32


def test_beginnings_differ_by_model_and_by_what_comes_before() -> None:
    long = "x" * 1000
    plain = of_body(model="m", prompt=long).keys
    assert len(plain) == 7
    assert not set(plain) & set(of_body(model="n", prompt=long).keys)
    assert not set(plain) & set(of_body(model="m", system="y", prompt=long).keys)
    assert plain == of_body(model="m:latest", prompt=long, max_tokens=7).keys
