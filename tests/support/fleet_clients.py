"""Clients of a fleet of hosts, which know what every answer must be."""

import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx2 as httpx

from support.shared import until
from support.two_units import body


class Clients:
    """Ask for models at random, ``tokens`` of each, until they are stopped. ``expected``: what each model
    says; ``ends`` counts how requests ended."""

    def __init__(self, url: str, expected: dict[str, list[int]], tokens: int):
        self.url, self.expected, self._tokens = url, expected, tokens
        self.ends: Counter[str] = Counter()
        self.models: set[str] = set()  # that were served
        self.wrong: list[str] = []
        self._stopped, self._lock = threading.Event(), threading.Lock()

    def run(self, seed: int) -> None:
        draw = random.Random(seed)
        while not self._stopped.is_set():
            model, stream = draw.choice(sorted(self.expected)), draw.random() < 0.5
            try:
                end = self._stream(model) if stream else self._whole(model)
            except httpx.HTTPError as error:
                end = f"wrong: {error!r}"
            with self._lock:
                self.ends[end] += 1
                if end in ("served", "streamed"):
                    self.models.add(model)
                if end.startswith("wrong"):
                    self.wrong.append(end)

    @contextmanager
    def asking(self, count: int) -> Iterator[None]:
        """So many of them, until the block ends."""
        with ThreadPoolExecutor(count) as threads:
            running = [threads.submit(self.run, seed) for seed in range(count)]
            try:
                yield
            finally:
                self._stopped.set()
            for one in running:
                one.result()

    def served_more(self, count: int) -> None:
        """Waits until so many more are."""
        before = self.served()
        until(lambda: self.served() > before + count)

    def served(self) -> int:
        with self._lock:
            return self.ends["served"] + self.ends["streamed"]

    def _whole(self, model: str) -> str:
        answer = httpx.post(f"{self.url}/v1/completions", json=body(model, self._tokens), timeout=120)
        if answer.status_code != 200:
            return self._refused(answer.status_code, answer.json())
        found = answer.json()["choices"][0]["token_ids"]
        return "served" if found == self.expected[model] else f"wrong: {model} {found}"

    def _stream(self, model: str) -> str:
        asked = body(model, self._tokens, stream=True)
        found: list[int] = []
        with httpx.stream("POST", f"{self.url}/v1/completions", json=asked, timeout=120) as answer:
            if answer.status_code != 200:
                return self._refused(answer.status_code, json.loads(answer.read()))
            frames = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        if frames[-1:] != ["[DONE]"]:
            return f"wrong: {model} broke off after {len(frames)} frames"
        for frame in map(json.loads, frames[:-1]):
            if "error" in frame:
                part = found == self.expected[model][: len(found)]
                return "cut" if part and frame["error"]["code"] == "host_lost" else f"wrong: {frame}"
            found += frame["choices"][0].get("token_ids") or []
        return "streamed" if found == self.expected[model] else f"wrong: {model} {found}"

    def _refused(self, status: int, said: dict[str, Any]) -> str:
        """No host has the model now, or the one that has it was lost."""
        code = said["error"]["code"]
        return "refused" if (status, code) in ((503, "no_host"), (502, "host_lost")) else f"wrong: {said}"
