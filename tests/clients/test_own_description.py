"""The door against its own /openapi.json: schemathesis sends what it allows, and what it does not."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from support.examples import examples

pytestmark = pytest.mark.clients
MODEL = "smollm2-135m-instruct"
EXAMPLES = examples(12)  # of each operation, allowed ones and others; all with MUXD_EXAMPLES=1
KINDS = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
WANTED = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
# An answer costs what it is long; that long ones are served is the other tests' business.
SHORT = {"max_tokens": 2, "max_completion_tokens": 2, "max_output_tokens": 2, "n": 1, "min_tokens": 0}
# What bounds an answer where a request says nothing: without it that would end with the model's context.
BOUND: dict[str, dict[str, Any]] = {
    "/chat/completions": {"max_tokens": 2},
    "/completions": {"max_tokens": 2},
    "/messages": {"max_tokens": 2},
    "/responses": {"max_output_tokens": 2},
    "/api/chat": {"options": {"num_predict": 2}},
    "/api/generate": {"options": {"num_predict": 2}},
}


def property_of(operation: Any, url: str, headers: dict[str, str], tried: Counter[str]) -> Callable[[], None]:
    judges = CHECKS.get_by_names(WANTED)
    assert len(judges) == len(WANTED)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # to find a smaller example would take as long as all others
    )
    @given(st.one_of([operation.as_strategy(generation_mode=kind) for kind in KINDS]))
    def holds(case: Any) -> None:
        if isinstance(case.body, dict):
            short = {name: SHORT[name] for name in SHORT if name in case.body}
            case.body |= BOUND.get(operation.path.removeprefix("/v1"), {}) | short | {"model": MODEL}
        case.call_and_validate(base_url=url, headers=headers, checks=judges, timeout=240)
        tried[operation.label] += 1

    return holds


@pytest.mark.timeout(1200)
def test_every_answer_is_as_described(url: str, key: str) -> None:
    headers = {"Authorization": f"Bearer {key}"}
    document = httpx.get(f"{url}/openapi.json", headers=headers).json()
    load_all_checks()
    tried: Counter[str] = Counter()
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        # Nothing would be served after the first two, and the third has no end.
        if "unload" not in operation.path and not operation.path.startswith(("/api/models/", "/api/events")):
            property_of(operation, url, headers, tried)()
    assert tried["POST /v1/chat/completions"] >= EXAMPLES
    assert len(tried) > 20
