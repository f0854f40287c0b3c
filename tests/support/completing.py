"""A completion as token ids: greedy, and as long as was asked for."""

from typing import Any

import aiohttp


async def complete(session: aiohttp.ClientSession, model: str, prompt: Any, tokens: int) -> list[int]:
    """``prompt``: text or ids."""
    body = {
        "model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip
    async with session.post("/v1/completions", json=body) as answer:
        assert answer.status == 200, await answer.text()
        return list((await answer.json())["choices"][0]["token_ids"])
