"""What happened to every request of a workload: filled by the simulator and by ``muxctl bench``.

Times are seconds from the workload's start; NaN where it did not come to that.
"""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from muxd.cost.table import CostTable
from muxd.sim.workload import Workload


class Outcome(IntEnum):
    """Every request ends as exactly one of these; OPEN is what no finished run contains."""

    OPEN = 0
    SERVED = 1
    REFUSED = 2
    FAILED = 3


class Records:
    """One slot for each request, in the workload's order."""

    def __init__(self, workload: Workload):
        count = len(workload.items)
        self.workload = workload
        self.sent: NDArray[np.float64] = np.array([item.time for item in workload.items])
        self.first: NDArray[np.float64] = np.full(count, np.nan)  # first token
        self.end: NDArray[np.float64] = np.full(count, np.nan)  # last token, or the refusal
        self.outcome: NDArray[np.int8] = np.zeros(count, np.int8)
        self.preemptions = 0
        self.errors: dict[str, int] = {}  # a sentence for each kind of failure, and how often

    def put(self, places: list[int], part: "Records") -> None:
        """What happened to the requests at ``places``, simulated by themselves."""
        for name in ("first", "end", "outcome"):
            getattr(self, name)[places] = getattr(part, name)
        self.preemptions += part.preemptions
        for why, count in part.errors.items():
            self.errors[why] = self.errors.get(why, 0) + count

    def alone(self, cost: CostTable) -> NDArray[np.float64]:
        """Seconds that each request takes by itself."""
        items = self.workload.items
        return np.array([cost.alone(item.model, item.prompt_tokens, item.output_tokens) for item in items])

    def on_time(self, cost: CostTable, times: float) -> NDArray[np.bool_]:
        """Which were served in at most ``times`` as long."""
        served = self.outcome == Outcome.SERVED
        found: NDArray[np.bool_] = served & (self.end - self.sent <= times * self.alone(cost))
        return found

    def finish(self, index: int, outcome: Outcome, now: float) -> None:
        """Raises ValueError when the request has ended before: nothing ends twice."""
        if self.outcome[index] != Outcome.OPEN:
            raise ValueError(f"request {index} ended twice")
        self.outcome[index] = outcome
        self.end[index] = now

    def fail(self, index: int, outcome: Outcome, now: float, why: str) -> None:
        """Ends it, and counts ``why``."""
        self.finish(index, outcome, now)
        self.errors[why] = self.errors.get(why, 0) + 1
