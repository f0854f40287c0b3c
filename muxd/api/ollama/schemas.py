"""The bodies of Ollama's API."""

from typing import Any

from msgspec import Struct

from muxd.api.schemas import Dimensions, Stops, Texts

OLLAMA_TAG = ":latest"  # what a name without a tag stands for


class OllamaOptions(Struct):
    """``options``; those about how a model is loaded (``num_ctx`` and the like) are the operator's."""

    temperature: Any = None
    top_p: Any = None
    top_k: Any = None
    min_p: Any = None
    seed: Any = None
    num_predict: int | None = None  # below 1: as many as fit
    stop: str | Stops | None = None
    repeat_penalty: Any = None
    presence_penalty: Any = None
    frequency_penalty: Any = None


class OllamaRequest(Struct, kw_only=True):
    """What both endpoints take."""

    model: str
    options: OllamaOptions | None = None
    stream: bool | None = None  # true unless it says no
    format: Any = None
    think: bool | str | None = None
    keep_alive: Any = None  # models stay until an operator unloads them
    logprobs: bool | None = None
    top_logprobs: Any = None

    @property
    def silent(self) -> bool:
        """It says nothing: the model is to be loaded, or to be let go."""
        return False


class OllamaChatRequest(OllamaRequest, kw_only=True):
    """POST /api/chat."""

    messages: list[dict[str, Any]] = []
    tools: list[dict[str, Any]] | None = None

    @property
    def silent(self) -> bool:
        return not self.messages


class OllamaGenerateRequest(OllamaRequest, kw_only=True):
    """POST /api/generate."""

    prompt: str = ""
    system: str | None = None
    raw: bool | None = None
    # refused
    suffix: str | None = None
    template: str | None = None
    images: list[Any] | None = None
    context: Any = None  # of an older answer; refused unless empty

    @property
    def silent(self) -> bool:
        return not self.prompt


class OllamaTextsRequest(Struct, kw_only=True):
    """POST /api/embed."""

    model: str
    input: str | Texts
    truncate: bool | None = None  # texts that are too long: cut, unless it says no
    dimensions: Dimensions | None = None
    options: Any = None  # about how a model is loaded
    keep_alive: Any = None


class OllamaTextRequest(Struct, kw_only=True):
    """POST /api/embeddings, as it was before."""

    model: str
    prompt: str
    options: Any = None
    keep_alive: Any = None


class ShowRequest(Struct):
    """POST /api/show."""

    model: str | None = None
    name: str | None = None  # what older clients call it
