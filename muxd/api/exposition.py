"""What /metrics says: the registry's series without their time of birth, and where wanted again under the
names that vLLM has for the same things, which boards and autoscalers key on.

Nothing is counted here: vLLM's names are made of muxd's series when somebody reads them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

# muxd's series -> vLLM's (docs.vllm.ai, "Production metrics", V1), which have model_name for model.
_VLLM = (
    ("muxd_requests_running", "vllm:num_requests_running"),
    ("muxd_requests_waiting", "vllm:num_requests_waiting"),
    ("muxd_prompt_tokens", "vllm:prompt_tokens"),
    ("muxd_prompt_tokens", "vllm:prefix_cache_queries"),
    ("muxd_cached_tokens", "vllm:prefix_cache_hits"),
    ("muxd_generation_tokens", "vllm:generation_tokens"),
    ("muxd_preemptions", "vllm:num_preemptions"),
    ("muxd_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
    ("muxd_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"),
    ("muxd_e2e_request_latency_seconds", "vllm:e2e_request_latency_seconds"),
    ("muxd_request_queue_time_seconds", "vllm:request_queue_time_seconds"),
)
_BORN = "_created"


@dataclass(frozen=True)
class Exposition(Collector):
    """All of ``registry``; ``vllm``: and again by vLLM's names."""

    registry: CollectorRegistry
    vllm: bool = False

    def collect(self) -> Iterator[Metric]:
        seen = {}
        for family in self.registry.collect():
            # A gauge for each series that says when it began: as many series again, and nobody asks for them.
            family.samples = [one for one in family.samples if one.name != family.name + _BORN]
            seen[family.name] = family
            yield family
        if self.vllm:
            for ours, theirs in _VLLM:
                yield _renamed(seen[ours], theirs)
            yield _usage(seen["muxd_pool_blocks"], seen["muxd_quota_blocks"])


def _renamed(family: Metric, name: str) -> Metric:
    made = Metric(name, family.documentation, family.type)
    made.samples = [
        Sample(name + one.name.removeprefix(family.name), _labels(one), one.value) for one in family.samples
    ]
    return made


def _labels(one: Sample) -> dict[str, str]:
    rest = {key: value for key, value in one.labels.items() if key != "model"}
    return {"model_name": one.labels["model"], "engine": "0"} | rest


def _usage(blocks: Metric, quotas: Metric) -> Metric:
    """Of what the model may hold, the part that it holds; no more than 1 where it borrows."""
    made = Metric("vllm:kv_cache_usage_perc", "Head blocks in use, as a part of the model's quota", "gauge")
    used = {one.labels["model"]: one.value for one in blocks.samples if one.labels["state"] == "used"}
    for one in quotas.samples:
        if one.value:
            made.samples.append(
                Sample(made.name, _labels(one), min(1.0, used[one.labels["model"]] / one.value))
            )
    return made
