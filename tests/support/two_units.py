"""A daemon with two devices, of one core each on the CPU, and tiny models whose answers may be long."""

import json
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx

from muxd.admin.schemas import ModelInfo
from support.live import LiveDaemon
from support.tiny import tiny_served
from support.where import Where

PROMPT = list(range(40, 60))


def folder(path: Path, seed: int, where: Where, positions: int = 4096) -> Path:
    """On a GPU the MLPs are wide: weights of more than a page."""
    tiny_served(path, seed, 4096 if where.gpu else 96)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return path


def models(where: Where, root: Path, pins: dict[str, str], extra: str = "", positions: int = 4096) -> str:
    """``[[model]]`` tables; the names' places in ``pins`` seed the weights, "" is no pin."""
    return "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder(root / name, seed, where, positions)}"\n'
        'dtype = "float32"\n'
        + (f'device = "{device}"\n' if device else "") + extra
        for seed, (name, device) in enumerate(pins.items())
    )  # fmt: skip


def body(model: str, tokens: int = 16, **more: Any) -> dict[str, Any]:
    return {
        "model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True, **more,
    }  # fmt: skip


class Stream:
    """A streamed answer in a thread of its own; ``first`` is set with its first token."""

    def __init__(self, daemon: LiveDaemon, model: str, tokens: int):
        self.first, self.tokens, self.finish = threading.Event(), list[int](), ""
        self.id = ""  # with the first token
        self.error = ""
        self._more, self._ended = threading.Condition(), False
        self._thread = threading.Thread(
            target=self._read, args=(daemon.url, body(model, tokens, stream=True))
        )
        self._thread.start()

    def _read(self, url: str, asked: dict[str, Any]) -> None:
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=120) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):  # and no comment, of a stream that waits
                        self._take(line.removeprefix("data: "))
        except httpx.HTTPError as error:
            self.error = repr(error)
        finally:
            self.first.set()
            with self._more:
                self._ended = True
                self._more.notify_all()

    def _take(self, line: str) -> None:
        if line == "[DONE]":
            return
        said = json.loads(line)
        if "error" in said:
            self.error = said["error"]["message"]
            return
        self.id = said["id"]
        with self._more:
            self.tokens += said["choices"][0].get("token_ids") or []
            self._more.notify_all()
        self.finish = said["choices"][0]["finish_reason"] or self.finish
        self.first.set()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def reach(self, count: int) -> None:
        """Wait until it has so many tokens, or has ended."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.tokens) >= count or self._ended, 120)

    def join(self) -> "Stream":
        self._thread.join(120)
        return self


def ask(daemon: LiveDaemon, model: str, tokens: int = 16) -> list[int]:
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body(model, tokens), timeout=120)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def row(daemon: LiveDaemon, model: str) -> ModelInfo:
    return next(row for row in daemon.admin.models() if row.name == model)


def whole(daemon: LiveDaemon) -> bool:
    """No block is held or lost, on any device."""
    books = daemon.admin.audit()
    return not books.fault and not books.held_blocks
