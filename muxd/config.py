"""``muxd.toml`` as frozen structs: defaults in one place.

``muxd.config_load`` reads it, ``muxd.config_checks`` says whether all of it together makes sense.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from muxd.messages import DtypeName, KvDtype, PoolingName, StepName, WeightsName

Policy = Literal["mux", "temporal", "spatial", "servers", "fcfs", "round_robin"]
Admission = Literal["queue", "slo"]

ToolParser = Literal["auto", "none", "hermes", "mistral", "gemma", "functiongemma", "llama3", "json"]
Reasoning = Literal["auto", "none", "think", "mistral", "gemma"]

MPS_CLIENTS = 48  # processes that may use one GPU at once (NVIDIA, Multi-Process Service, "Limitations")
MPS_SPARED = 4  # of them, for the workers that replace others and for whoever looks at the GPU

# Units of settings, for docs/configuration.md.
Seconds = Annotated[float, Meta(extra={"unit": "s"})]
Size = Annotated[str, Meta(extra={"unit": "bytes"})]
Percent = Annotated[int, Meta(extra={"unit": "%"})]
Tokens = Annotated[int, Meta(extra={"unit": "tokens"})]
Bytes = Annotated[int, Meta(extra={"unit": "bytes"})]
Rate = Annotated[float, Meta(extra={"unit": "requests/s"})]

LogFormat = Literal["text", "logfmt", "json"]
Split = Literal["auto", "yes", "no"]
# How the two phases of a model share a device: one batch at a time; a batch of each at once in one process; a
# process for each.
Phasing = Literal["in turn", "beside", "apart"]
Residents = Literal["worth", "lru", "one"]


class ServerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[server]``: doors and manners."""

    host: str | list[str] = "localhost"
    port: int = 8000
    keys: str = ""  # file of API keys; empty: whoever reaches the door may come in
    cors_origins: list[str] = msgspec.field(default_factory=list)  # of pages that may ask from a browser
    allowed_hosts: list[str] = msgspec.field(default_factory=list)  # further names of a loopback address
    strict: bool = False  # refuse fields of requests that are not known
    tls_cert: str = ""  # files in PEM; both or none
    tls_key: str = ""
    socket: str = ""  # admin Unix socket; empty: $XDG_RUNTIME_DIR/muxd.sock, else MUXD_HOME/muxd.sock
    max_body: Size = "8M"
    shutdown_grace: Seconds = 10.0  # seconds that running streams get to end after SIGTERM
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: LogFormat = "text"  # logfmt and json: one line of fields for each event, for log programs
    vllm_metrics: bool = False  # /metrics says the same again by vLLM's names
    traces: str = ""  # URL of an OTLP receiver that gets a span for each request; empty: none
    device: str = "auto"  # "cpu", "cuda:0", or "auto": the first GPU where there is one

    @property
    def hosts(self) -> list[str]:
        return [self.host] if isinstance(self.host, str) else self.host


class LimitsConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[limits]``: what clients of the HTTP door may take; times in seconds."""

    connections: int = 4096
    header_timeout: Seconds = 10.0  # from the first byte of a request to the end of its headers
    body_timeout: Seconds = 30.0  # for the body
    idle_timeout: Seconds = 75.0  # of a connection without a request
    write_timeout: Seconds = 30.0  # of a client that does not read
    body_memory: Size = "64M"  # of bodies that arrive, together; more get 503


class TextConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[text]``: the processes in which chat templates run and prompts become tokens."""

    processes: int = 2
    memory: Size = "1G"  # of addresses, for each; a job that needs more ends its process
    deadline: Seconds = 10.0  # seconds of its process that a job may take, and that it may wait for one
    budget: Size = "64M"  # bytes of requests that wait or are worked on, together; more get 503


class DeviceConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[[device]]``: one of several devices, each with a pool of its own."""

    # "cuda:0"; on the CPU "cpu:0", "cpu:1" ..., any numbers; a mesh of several with "+" between
    name: str
    cores: list[int] = msgspec.field(default_factory=list)  # CPU numbers of its own; none on a GPU
    pool: Size = ""  # as pool.bytes, which is the default; of a mesh on each member
    memory: Size = ""  # pool and weights together take no more; empty: what the device has

    @property
    def members(self) -> list[str]:
        """The devices that it is made of."""
        return self.name.split("+")


class PoolConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[pool]``: the KV memory all models share."""

    bytes: Size = "auto"  # "8G", "60%" of the device's memory, or "auto": what models leave (pool_bytes)
    block_bytes: Bytes = 8192
    grow: bool = False  # memory that models leave becomes K and V, until a load needs it


class SchedulerConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[scheduler]``: who runs when (docs/design.md §5)."""

    policy: Policy = "mux"
    admission: Admission = "queue"  # "slo": refuse what cannot meet its model's ttft_slo
    adapt_period: Seconds = 8.0  # seconds between moves of the quotas
    overbook: Percent = 0  # percent of shares that may be booked above 100, in total
    drain_timeout: Seconds = 0.5  # seconds a waiting prefill may hold back decode steps
    prefill_tokens: Tokens = 0  # token budget of one prefill batch; 0: by the device (prefill_tokens)
    prefill_seconds: Seconds = 0.25  # a prefill is cut where it would take longer; 0: by tokens alone
    look_ahead: Tokens = 64  # generated tokens charged at admission at least
    batch_timeout: Seconds = 10.0  # seconds after which a batch may be taken to hang
    batch_timeout_factor: float = 20.0  # and times what it is expected to take
    split_phases: Split = "auto"  # a process for prefill and one for decode; "auto": where caps want it


class PlacementConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[placement]``: which model runs where, with more than one ``[[device]]``."""

    replan: bool = True  # move models where the work has gone
    period: Seconds = 5.0  # seconds between looks; rates are averaged over some twelve of them
    least_gain: float = 0.1  # part of what is served now, where it changes, that a new plan must add
    cooldown: Seconds = 60.0  # seconds from one new plan to the next
    horizon: Seconds = 300.0  # seconds in which the gain must be more than the moves cost
    profile: str = ""  # costs by `muxd profile`; empty: estimated from shapes and the device's peaks


class ResidencyConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[residency]``: which models are on a device, where there are more than fit it; times in seconds."""

    policy: Residents = "worth"  # who leaves: whose absence costs least; "lru"; "one": one model at a time
    host_memory: Size = (
        "auto"  # for the weights of models that sleep: "20G"; "auto": half of what is free; "0"
    )
    least: Seconds = 2.0  # a model stays at least so long
    patience: Seconds = 5.0  # who has something to do leaves only for a request that has waited so long
    idle_after: Seconds = 0.0  # without requests a model sleeps after so long; 0: only to make room


class QuotaConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``quota`` of a model: how much of the pool it is guaranteed and may take at most."""

    min: Size = "0"  # "64M" or "10%"
    max: Size = "100%"
    weight: float = 1.0  # its part of what nobody is guaranteed, against the other models' weights


Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[model.sampling]``: for requests that do not say. Ranges are those of requests."""

    temperature: Temperature | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100)] | None = None


class ModelConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """``[[model]]``: one served model; with ``lora`` an adapter of another, of which it has all but
    ``OWN``."""

    name: str
    path: str = ""  # its folder; of an adapter empty
    base: str = ""  # name of the model that an adapter belongs to
    lora: str = ""  # the adapter's folder, as PEFT saves it
    share: Percent = 0  # percent of the device under contention; 0: an equal part
    dtype: DtypeName = "auto"  # of weights, K and V; "auto": what the folder holds, on a GPU never float32
    kv_dtype: KvDtype = "auto"  # of K and V: as dtype, or "fp8", which is a byte a number
    weights: WeightsName = (
        "file"  # of matrices: a GGUF's blocks or dtype as in the folder, or made at the load
    )
    cpu_step: StepName = "auto"  # "native" where a compiler is, else torch; on a GPU neither
    quota: QuotaConfig = msgspec.field(default_factory=QuotaConfig)
    max_context: Tokens = 0  # 0: what the model and the pool allow
    max_running: int = 0  # sequences decoded together; 0: 32 on a CPU, 128 on a GPU
    max_queue: int = 256  # waiting requests before 429
    ttft_slo: Seconds = 0.0  # seconds from arrival to the first token; 0: no target
    tpot_slo: Seconds = 0.0  # seconds a token after the first, mean of a request; 0: no target
    prefix_cache: bool = True  # keep computed rows for later prompts that begin with the same tokens
    pooling: PoolingName = "auto"  # how it embeds texts; "auto": as its folder says, "none": not at all
    chat_template: str = ""  # file with a jinja template, overrides the model folder's
    aliases: list[str] = msgspec.field(default_factory=list)  # further names that clients may use
    sampling: SamplingConfig = msgspec.field(default_factory=SamplingConfig)
    system_prompt: str = ""  # where a conversation has none
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)  # where a request says nothing
    tool_parser: ToolParser = "auto"  # how its calls of tools are written; "none": they stay text
    reasoning: Reasoning = "auto"  # what it reasons between; "none": that stays in the content
    device: str = ""  # the [[device]] it runs on; empty: where the plan puts it
    tp: int = 1  # devices that it is cut over, tensor parallel: all of a mesh's
    rate: Rate = 0.0  # requests a second expected of it, for the plan at the start; 0: as the others
    resident: Literal["demand", "always"] = "demand"  # "always": it never sleeps


# Keys that an adapter's table may have.
OWN = frozenset({
    "name", "base", "lora", "aliases", "sampling", "system_prompt", "chat_template_kwargs", "tool_parser",
    "reasoning", "ttft_slo", "tpot_slo",
})  # fmt: skip


class Config(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    server: ServerConfig = msgspec.field(default_factory=ServerConfig)
    limits: LimitsConfig = msgspec.field(default_factory=LimitsConfig)
    text: TextConfig = msgspec.field(default_factory=TextConfig)
    pool: PoolConfig = msgspec.field(default_factory=PoolConfig)
    scheduler: SchedulerConfig = msgspec.field(default_factory=SchedulerConfig)
    placement: PlacementConfig = msgspec.field(default_factory=PlacementConfig)
    residency: ResidencyConfig = msgspec.field(default_factory=ResidencyConfig)
    device: list[DeviceConfig] = msgspec.field(default_factory=list)
    model: list[ModelConfig] = msgspec.field(default_factory=list)

    @property
    def bases(self) -> list[ModelConfig]:
        """The models that have weights of their own: all but adapters."""
        return [one for one in self.model if not one.lora]

    def adapters(self, base: str) -> tuple[ModelConfig, ...]:
        """Of the model ``base``, in the file's order."""
        return tuple(one for one in self.model if one.lora and one.base == base)

    @property
    def devices(self) -> list[DeviceConfig]:
        """Those of ``[[device]]``, else the one of ``server.device``; each with its pool."""
        named = self.device or [DeviceConfig(self.server.device)]
        return [msgspec.structs.replace(one, pool=one.pool or self.pool.bytes) for one in named]

    @property
    def models_a_device(self) -> int:
        """The most that one has where they are spread evenly."""
        return -(-len(self.bases) // len(self.devices))


def home(env: Mapping[str, str] = os.environ) -> Path:
    """Where models and sockets live: ``$MUXD_HOME``, else ``~/.cache/muxd``."""
    return Path(env.get("MUXD_HOME") or Path.home() / ".cache" / "muxd")


def state(env: Mapping[str, str] = os.environ) -> Path:
    """Where is kept what was learnt: systemd's ``$STATE_DIRECTORY``, else ``home``."""
    given = env.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else home(env)


def phasing(config: "Config", rungs: Sequence[int], *, gpu: bool, caps: bool) -> Phasing:
    """How prefill and decode of a model compute on a device with these shares, by what is configured.

    By default beside each other on a GPU that can be shared: in one process where a batch chooses its SMs;
    where a process has its share for life (``caps``) in two, if the GPU takes so many. Where models take
    turns on the whole of it, two batches could never compute at once; on the CPU each process would hold
    packed weights of its own.
    """
    if config.scheduler.split_phases != "auto":
        return "apart" if config.scheduler.split_phases == "yes" else "in turn"
    if not gpu or len(rungs) < 2:
        return "in turn"
    if not caps:
        return "beside"
    return "apart" if 2 * config.models_a_device <= MPS_CLIENTS - MPS_SPARED else "in turn"


def running(model: ModelConfig, *, gpu: bool) -> int:
    """How many of its sequences are decoded together: by default on a GPU what graphs are recorded for."""
    return model.max_running or (128 if gpu else 32)


def prefill_tokens(config: SchedulerConfig, *, gpu: bool) -> int:
    """How many tokens one prefill batch has at most; on a GPU more, as some hundred take no longer there than
    the weights are read."""
    return config.prefill_tokens or (2048 if gpu else 512)


def context(model: ModelConfig, positions: int) -> int:
    """Tokens of prompt and answer that model and configuration allow, whatever the pool does."""
    return min(model.max_context or positions, positions)
