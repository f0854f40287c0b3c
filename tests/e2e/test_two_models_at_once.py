"""Both demo models stream at the same time to sixteen official clients each; nothing mixes, nothing leaks."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.live import LiveDaemon, demo_config
from support.where import EVERYWHERE, Where, on

pytestmark = [pytest.mark.demo, on(*EVERYWHERE)]

CLIENTS, TOKENS = 16, 24


@pytest.fixture(scope="module")
def daemon(where: Where, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveDaemon]:
    with where.live(demo_config("smol", "gemma"), tmp_path_factory.mktemp("two")) as daemon:
        yield daemon


def ask(daemon: LiveDaemon, model: str, number: int, start: threading.Barrier | None) -> str:
    """One greedy stream whose prompt only this client has."""
    prompt = f"{number + 3} plus {number} is"
    with daemon.client() as client:
        if start is not None:
            start.wait()
        if model == "smol":
            chunks = client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                max_tokens=TOKENS,
                temperature=0,
            )
            return "".join(c.choices[0].delta.content or "" for c in chunks)
        stream = client.completions.create(
            model=model, prompt=prompt, stream=True, max_tokens=TOKENS, temperature=0
        )
        return "".join(chunk.choices[0].text for chunk in stream)


def test_thirty_two_streams_of_two_models_do_not_mix(daemon: LiveDaemon) -> None:
    jobs = [(model, n) for n in range(CLIENTS) for model in ("smol", "gemma")]
    start = threading.Barrier(len(jobs))
    with ThreadPoolExecutor(len(jobs)) as pool:
        texts = list(pool.map(lambda job: ask(daemon, job[0], job[1], start), jobs))
    assert all(texts)
    # bf16 rounds differently by batch size, so texts may differ late; mixed streams differ at once.
    alone = [ask(daemon, *job, None) for job in jobs[:8]]
    same = [common(a, b) for a, b in zip(alone, texts, strict=False)]
    assert sum(n >= 10 for n in same) >= 7, (alone, texts[:8])
    status = daemon.status()
    assert status.pool.free_blocks + status.pool.cached_blocks == status.pool.total_blocks
    assert (status.requests.running, status.requests.waiting, status.requests.failed) == (0, 0, 0)
    assert status.requests.served == len(jobs) + 8


def common(a: str, b: str) -> int:
    """Length of the common beginning; the whole length when one ends there."""
    n = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return 1000 if n is None else n


def test_a_prompt_that_begins_like_an_earlier_one_is_found_computed(daemon: LiveDaemon) -> None:
    """The answer is the same as without, and usage says how many tokens were found."""
    story = "A long time ago, in a small village by the sea, " * 12
    with daemon.client() as client:

        def complete(end: str) -> tuple[str, int, int]:
            answer = client.completions.create(model="smol", prompt=story + end, max_tokens=24, temperature=0)
            assert answer.usage is not None
            assert answer.usage.prompt_tokens_details is not None
            found = answer.usage.prompt_tokens_details.cached_tokens
            assert found is not None
            return answer.choices[0].text, found, answer.usage.prompt_tokens

        _, none, _ = complete("there lived a fisher")
        first, some, total = complete("a boat came home")
        again, most, _ = complete("a boat came home")
    assert none == 0
    assert 64 <= some < total  # whole rows of 32 tokens, and never the last token
    assert some <= most < total
    assert common(first, again) >= 10  # bf16 rounds differently by how a prompt is cut


def test_a_client_that_goes_away_frees_its_rows(daemon: LiveDaemon) -> None:
    with daemon.client() as client:
        stream = client.completions.create(
            model="gemma", prompt="Count: 1 2 3", stream=True, max_tokens=2000,
            temperature=0, extra_body={"ignore_eos": True},
        )  # fmt: skip
        next(iter(stream))
        assert daemon.status().requests.running == 1
        stream.close()
        # One short request later at least one step has passed since the disconnect was seen.
        client.completions.create(model="gemma", prompt="Hello", max_tokens=4, temperature=0)
    status = daemon.status()
    assert status.requests.running == 0
    assert status.requests.cancelled == 1
    assert status.pool.free_blocks + status.pool.cached_blocks == status.pool.total_blocks
