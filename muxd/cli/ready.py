"""What ``muxd serve`` says once it serves: the models that are ready, and curl lines to paste."""

from collections.abc import Sequence
from shlex import quote

import msgspec

from muxd.admin.schemas import ModelInfo


def banner(address: str, models: Sequence[ModelInfo]) -> str:
    """``address`` is the HTTP door's, "http://127.0.0.1:8000". One model of each kind gets a curl line."""
    lines = [f"muxd serves on {address}", *(_line(model, models) for model in models), ""]
    usable = [model for model in models if model.state == "ready"]
    if not usable:
        return "\n".join([*lines, "No model is ready; `muxctl models` tells their state."])
    talkers = [model for model in usable if model.chat][:1]
    writers = [model for model in usable if not model.chat][:1]
    lines += [_chat(address, model.name) for model in talkers]
    lines += [_completion(address, model.name) for model in writers]
    return "\n".join(lines)


def _line(model: ModelInfo, models: Sequence[ModelInfo]) -> str:
    width = max(len(other.name) for other in models)
    kind = "chat and completions" if model.chat else "completions only: no chat template"
    text = kind if model.state == "ready" else model.detail
    return f"  {model.name:<{width}}   {model.state}   {text}".rstrip()


def _chat(address: str, model: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Name three rivers."}],
        "max_tokens": 64,
        "stream": True,
    }
    return f"Chat with {model}:\n{_curl(f'{address}/v1/chat/completions', body)}\n"


def _completion(address: str, model: str) -> str:
    body = {"model": model, "prompt": "The three largest rivers are", "max_tokens": 32, "stream": True}
    return f"Complete text with {model}:\n{_curl(f'{address}/v1/completions', body)}\n"


def _curl(url: str, body: dict[str, object]) -> str:
    json = msgspec.json.encode(body).decode()
    return f"  curl -N {url} -H 'Content-Type: application/json' -d {quote(json)}"
