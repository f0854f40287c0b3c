"""Requests with which one client could hold up everybody: what ``stall.py`` sends, and tests count the
answers of.

Each case is a function of the daemon's address that sends, waits for what it waits for, and returns the
statuses (0: hung up without one).
"""

import gzip
import json
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass

MODEL, CHAT, HOSTILE = "plain", "chat", "template"  # served beside the one that is watched
MEGA = 1_000_000

# Plain jinja, a few hundred million steps of C for each of the turns that the sandbox counts.
TEMPLATE = (
    "{% set big = ('ab' * 4000000) %}{% for i in range(400) %}{% for j in range(400) %}"
    "{% if 'ba' ~ 'x' in big %}{% endif %}{% endfor %}{% endfor %}{{ messages[0].content }}"
)


@dataclass(frozen=True)
class Case:
    """``expected``: what may come back; ``prepare`` makes the requests before the clock runs."""

    name: str
    expected: frozenset[int]
    prepare: Callable[[float], Callable[[str, int], list[int]]]  # of a size: 1 is all of it


def post(host: str, port: int, path: str, body: bytes, *headers: str, timeout: float = 120) -> int:
    """Send, read the answer to its end, and return the status."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        "Connection: close",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    with socket.create_connection((host, port), timeout=timeout) as connection:
        with suppress(ConnectionError):  # it may have heard enough
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        return status_of(connection)


def status_of(connection: socket.socket) -> int:
    head, more = b"", b""
    with suppress(ConnectionError, TimeoutError):
        while more := connection.recv(1 << 16):
            head = (head + more)[:64]
    return int(head.split()[1]) if head.startswith(b"HTTP/1.") else 0


def _posts(path: str, bodies: Iterable[bytes], *headers: str) -> Callable[[str, int], list[int]]:
    ready = list(bodies)

    def send(host: str, port: int) -> list[int]:
        with ThreadPoolExecutor(len(ready)) as threads:
            return list(threads.map(lambda body: post(host, port, path, body, *headers), ready))

    return send


def _completion(prompt: object) -> bytes:
    return json.dumps({"model": MODEL, "prompt": prompt, "max_tokens": 1}).encode()


def _chat(model: str, **more: object) -> bytes:
    return json.dumps(
        {"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1} | more
    ).encode()


def _words(count: float) -> str:
    return ("The quick brown fox, 1234 jumps! " * (int(count) // 33 + 1))[: int(count)]


def _packed(size: float) -> Callable[[str, int], list[int]]:
    bomb = gzip.compress(b" " * int(400 * MEGA * size), 9)
    return _posts("/v1/completions", [bomb], "Content-Encoding: gzip")


def _unfinished(count: int, sent: Callable[[int], bytes], wait: float) -> Callable[[str, int], list[int]]:
    """Connections that stop in the middle; the answers of those that get one within ``wait`` seconds."""

    def send(host: str, port: int) -> list[int]:
        with ExitStack() as stack:
            opened = []
            for number in range(count):
                with suppress(OSError):
                    one = stack.enter_context(socket.create_connection((host, port), timeout=30))
                    opened.append(one)
                    with suppress(OSError):
                        one.sendall(sent(number))
            found = []
            for number, one in enumerate(opened):
                one.settimeout(0.001 if number else wait)  # the others have had the first one's time
                status = status_of(one)
                found += [status] if status else []
            return found

    return send


def head(length: int) -> bytes:
    """Of a completion whose body has ``length`` bytes."""
    lines = (
        "POST /v1/completions HTTP/1.1",
        "Host: 127.0.0.1",
        "Content-Type: application/json",
        f"Content-Length: {length}",
    )
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode()


def _half_sent(size: float) -> bytes:
    return head(int(8 * MEGA)) + b" " * int(7.9 * MEGA * size)


CASES = [
    Case(
        "5 MB prompt",
        frozenset({400}),
        lambda k: _posts("/v1/completions", [_completion(_words(5 * MEGA * k))]),
    ),
    Case(
        "6 x 7.9 MB prompts",
        frozenset({400, 503}),
        lambda k: _posts("/v1/completions", [_completion(_words(7.8 * MEGA * k))] * 6),
    ),
    Case(
        "longest prompt that could fit",
        frozenset({200, 400}),
        lambda k: _posts("/v1/completions", [_completion(_words(300_000 * k))]),
    ),
    Case(
        "/tokenize 7.9 MB with strings",
        frozenset({200, 400, 503}),
        lambda k: _posts(
            "/tokenize",
            [
                json.dumps(
                    {"model": MODEL, "prompt": _words(7.8 * MEGA * k), "return_token_strs": True}
                ).encode()
            ],
        ),
    ),
    Case(
        "1,900 prompts of 4,096 characters",
        frozenset({400}),
        lambda k: _posts("/v1/completions", [_completion([_words(4096 * k)] * 1900)]),
    ),
    Case(
        "1,000 prompts of 4,096 characters",
        frozenset({200, 400, 429, 503}),
        lambda k: _posts("/v1/completions", [_completion([_words(4096 * k)] * 1000)]),
    ),
    Case(
        "95,000 empty messages",
        frozenset({400}),
        lambda k: _posts(
            "/v1/chat/completions",
            [_chat(CHAT, messages=[{"role": "user", "content": ""}] * int(95_000 * max(k, 0.2)))],
        ),
    ),
    Case(
        "chat_template_kwargs with 400,000 keys",
        frozenset({400}),
        lambda k: _posts(
            "/v1/chat/completions",
            [_chat(CHAT, chat_template_kwargs={f"a{i}": 1 for i in range(int(400_000 * k))})],
        ),
    ),
    Case("gzip bomb of 400 MB", frozenset({413, 400}), _packed),
    Case(
        "2.6 M token ids",
        frozenset({400}),
        lambda k: _posts("/v1/completions", [_completion([1] * int(2_600_000 * k))]),
    ),
    Case(
        "/detokenize 2.6 M ids",
        frozenset({200, 400, 503}),
        lambda k: _posts(
            "/detokenize", [json.dumps({"model": MODEL, "tokens": [5] * int(2_600_000 * k)}).encode()]
        ),
    ),
    Case(
        "7 MB name of a model",
        frozenset({404}),
        lambda k: _posts(
            "/v1/completions", [json.dumps({"model": "x" * int(7 * MEGA * k), "prompt": "a"}).encode()]
        ),
    ),
    Case(
        "300,000 keys of logit_bias",
        frozenset({400}),
        lambda k: _posts(
            "/v1/completions",
            [
                json.dumps(
                    {
                        "model": MODEL,
                        "prompt": "a",
                        "logit_bias": {str(i): 1 for i in range(int(300_000 * k))},
                    }
                ).encode()
            ],
        ),
    ),
    Case(
        "nest of 7.9 MB",
        frozenset({400}),
        lambda k: _posts("/v1/completions", [b'{"model":"plain","prompt":' + b"[" * int(7.9 * MEGA * k)]),
    ),
    Case(
        "template that never ends, 4 times",
        frozenset({400, 503}),
        lambda k: _posts("/v1/chat/completions", [_chat(HOSTILE)] * 4),
    ),
    Case(
        "100 unfinished bodies of 7.9 MB",
        frozenset({408, 503}),
        lambda k: _unfinished(100, lambda number: _half_sent(k), 0.5),
    ),
    Case(
        "200 unfinished headers",
        frozenset({408, 503}),
        lambda k: _unfinished(int(200 * k), lambda number: b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\n", 0.5),
    ),
    Case(
        "5,000 idle connections",
        frozenset({408, 503}),
        lambda k: _unfinished(int(5000 * k), lambda number: b"", 0.5),
    ),
]


def told(statuses: list[int]) -> str:
    """``2 x 400, 1 x 503``."""
    return ", ".join(f"{count} x {status}" for status, count in sorted(Counter(statuses).items())) or "none"
