"""The engine's Prometheus series: requests, tokens, latencies, pool, workers. Imports no torch.

Written by ``muxd.engine.observer`` and the daemon, read by ``GET /metrics``. One instance per registry, no
global state. Labels are model names, phases and fixed words only: their number is bounded by the plan.
Intervals are seconds of one clock, taken by the caller. Buckets are vLLM's, so that its boards fit.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from muxd.engine.slo import Outcome, Slo, Verdict

PhaseName = Literal["prefill", "decode"]
BlockState = Literal["used", "cached", "free"]

TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560,
)  # fmt: skip
TOKEN_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75,
    1, 2.5, 5, 7.5, 10, 20, 40, 80,
)  # fmt: skip
REQUEST_BUCKETS = (
    0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50,
    60, 120, 240, 480, 960, 1920, 7680,
)  # fmt: skip
BATCH_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Metrics:
    """Named methods for what happens; every series carries ``model`` and none a request id."""

    def __init__(self, registry: CollectorRegistry):
        self.registry = registry

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"muxd_{name}", text, ("model", *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"muxd_{name}", text, ("model", *labels), registry=registry)

        def seconds(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
            full = f"muxd_{name}_seconds"
            return Histogram(full, text, ("model", *labels), registry=registry, buckets=buckets)

        self._requests = counter("requests", "Sequences by how they ended", "outcome")
        self._prompt = counter("prompt_tokens", "Prompt tokens of admitted sequences")
        self._cached = counter("cached_tokens", "Prompt tokens found computed at admission")
        self._quota = gauge("quota_blocks", "Head blocks the model may hold without borrowing")
        self._generated = counter("generation_tokens", "Tokens generated")
        self._preemptions = counter("preemptions", "Sequences that lost their rows and were recomputed")
        self._resumed = counter("resumed", "Sequences that lost their worker and went on with the next one")
        self._restarts = counter("worker_restarts", "Workers started again after they were lost")
        self._faults = Counter(
            "muxd_device_faults", "Faults of one worker that reached all of its device", registry=registry
        )
        self._slo = counter("slo_requests", "Ended requests by target, met or not", "target", "met")
        self._good = counter("goodput_requests", "Requests served within all targets of their model")
        self._running = gauge("requests_running", "Sequences in prefill or decode")
        self._waiting = gauge("requests_waiting", "Sequences that have not started")
        self._blocks = gauge("pool_blocks", 'Head blocks by state; free ones under model=""', "state")
        self._ttft = seconds("time_to_first_token", "Arrival to first token", TTFT_BUCKETS)
        self._itl = seconds("inter_token_latency", "Token to next token", TOKEN_BUCKETS)
        self._e2e = seconds("e2e_request_latency", "Arrival to last token", REQUEST_BUCKETS)
        self._queue = seconds("request_queue_time", "Arrival to first batch", REQUEST_BUCKETS)
        self._batch = seconds("batch", "One batch on the device", BATCH_BUCKETS, "phase")

    def add_model(self, model: str) -> None:
        """Make the model's series exist at zero, so that rates start with its first request."""
        for outcome in ("served", "refused", "cancelled", "failed"):
            self._requests.labels(model, outcome)
        series: Iterable[Counter | Gauge | Histogram] = (
            self._prompt, self._cached, self._generated, self._preemptions, self._resumed, self._restarts,
            self._running, self._waiting, self._ttft, self._itl, self._e2e, self._queue,
        )  # fmt: skip
        for one in series:
            one.labels(model)

    # ---- one sequence -----------------------------------------------------------------------------

    def arrived(self, model: str, prompt_tokens: int = 0) -> None:
        """A sequence was handed to the scheduler."""
        self._prompt.labels(model).inc(prompt_tokens)

    def started(self, model: str, queued: float, cached: int = 0) -> None:
        """Its first batch was launched after ``queued`` seconds, ``cached`` tokens of it are computed."""
        self._queue.labels(model).observe(queued)
        self._cached.labels(model).inc(cached)

    def first_token(self, model: str, ttft: float) -> None:
        """Its first token came ``ttft`` seconds after arrival."""
        self._generated.labels(model).inc()
        self._ttft.labels(model).observe(ttft)

    def token(self, model: str, gap: float) -> None:
        """One more token, ``gap`` seconds after the one before."""
        self._generated.labels(model).inc()
        self._itl.labels(model).observe(gap)

    def ended(self, model: str, outcome: Outcome, e2e: float | None = None) -> None:
        """It is over; ``e2e`` seconds from arrival, given for those that were served."""
        self._requests.labels(model, outcome).inc()
        if e2e is not None:
            self._e2e.labels(model).observe(e2e)

    def add_slo(self, model: str, slo: Slo) -> None:
        """Make the series of the model's targets exist at zero; without targets it has none."""
        for target in slo.targets:
            self._good.labels(model)
            for met in ("true", "false"):
                self._slo.labels(model, target, met)

    def judged(self, model: str, verdict: Verdict) -> None:
        """A request was measured against its model's targets."""
        for target, met in verdict.items():
            self._slo.labels(model, target, str(met).lower()).inc()
        self._good.labels(model).inc(verdict.good)

    def resumed(self, model: str) -> None:
        self._resumed.labels(model).inc()

    def preempted(self, model: str) -> None:
        self._preemptions.labels(model).inc()

    # ---- the unit ---------------------------------------------------------------------------------

    def watch_queue(self, model: str, *, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """How many sequences the model has, asked when somebody reads the series."""
        self._running.labels(model).set_function(running)
        self._waiting.labels(model).set_function(waiting)

    def watch_blocks(self, model: str, state: BlockState, count: Callable[[], int]) -> None:
        """Head blocks ``model`` holds in ``state``. Free blocks belong to nobody: ``model`` is ""."""
        self._blocks.labels(model, state).set_function(count)

    def watch_quota(self, model: str, count: Callable[[], int]) -> None:
        """Head blocks ``model`` may hold without borrowing."""
        self._quota.labels(model).set_function(count)

    def batch(self, model: str, phase: PhaseName, seconds: float) -> None:
        """A batch was done after ``seconds`` on the device."""
        self._batch.labels(model, phase).observe(seconds)

    def device_faulted(self) -> None:
        self._faults.inc()

    def worker_restarted(self, model: str) -> None:
        self._restarts.labels(model).inc()
