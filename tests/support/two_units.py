"""A daemon with two CPU devices of one core each, and tiny models whose answers may be long."""

import json
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from muxd.admin.schemas import ModelRow
from muxd.device.cpu import available_cores
from support.live import LiveDaemon
from support.tiny import tiny_served

PROMPT = list(range(40, 60))

needs_two_cores = pytest.mark.skipif(available_cores() < 2, reason="two devices need two cores")


def folder(path: Path, seed: int, positions: int = 4096) -> Path:
    tiny_served(path, seed)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {"max_position_embeddings": positions}))
    return path


def models(root: Path, pins: dict[str, str], extra: str = "") -> str:
    """``[[model]]`` tables; the names' places in ``pins`` seed the weights, "" is no pin."""
    return "".join(
        f'[[model]]\nname = "{name}"\npath = "{folder(root / name, seed)}"\ndtype = "float32"\n'
        + (f'device = "{device}"\n' if device else "") + extra
        for seed, (name, device) in enumerate(pins.items())
    )  # fmt: skip


def devices(pools: tuple[str, str] = ("16M", "16M")) -> str:
    return "".join(
        f'[[device]]\nname = "cpu:{n}"\ncores = [{n}]\npool = "{pool}"\n' for n, pool in enumerate(pools)
    )


def body(model: str, tokens: int = 16, **more: Any) -> dict[str, Any]:
    return {
        "model": model, "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True, **more,
    }  # fmt: skip


def ask(daemon: LiveDaemon, model: str, tokens: int = 16) -> list[int]:
    answer = httpx.post(f"{daemon.url}/v1/completions", json=body(model, tokens), timeout=120)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def row(daemon: LiveDaemon, model: str) -> ModelRow:
    return next(row for row in daemon.admin.models() if row.name == model)


def whole(daemon: LiveDaemon) -> bool:
    """No block is held or lost, on any device."""
    books = daemon.admin.audit()
    return not books.fault and not books.held_blocks
