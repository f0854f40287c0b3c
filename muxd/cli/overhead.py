"""What the daemon adds to a batch: a live muxd against the cost table, on an otherwise idle machine.

One stream, then several at once, through HTTP. What they take longer than the table says is the overhead: the
wire, the scheduler, detokenising, HTTP, the client's own work on the same cores.
"""

import asyncio
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import uvloop

from muxd import toml
from muxd.cli.local_daemon import local_daemon
from muxd.cost.profile import Overhead
from muxd.cost.table import CostTable
from muxd.messages import Dtype
from muxd.sim.records import Records
from muxd.sim.replay import Replay
from muxd.sim.workload import Item, Workload

_IN, _OUT = 64, 96
_FIRST_STEP = 2  # tokens: of a second one the step is never sent ahead, so that nothing hides the overhead
_STREAMS = 8
_SINGLES = 5
PARTS = 2  # measurements, for the progress bar


def measure_overhead(
    folder: Path,
    name: str,
    dtype: Dtype,
    cost: CostTable,
    device: str = "cpu",
) -> Overhead:
    """``cost`` must know ``name`` on ``device``, without overhead: it is served as it was measured."""
    measured = cost.model(name)
    output, repeats = (_FIRST_STEP, 4 * _SINGLES) if cost.device.gpu else (_OUT, _SINGLES)
    with tempfile.TemporaryDirectory(prefix="muxd-overhead-") as scratch:
        config = Path(scratch, "muxd.toml")
        server = f'[server]\ndevice = "{device}"\n'
        model = f'[[model]]\nname = "{name}"\npath = "{folder.absolute()}"\n'
        kinds = f'dtype = "{dtype}"\nkv_dtype = "{measured.shape.kv_dtype}"\nweights = "{measured.weights}"\n'
        kinds += f'cpu_step = "{measured.step}"\nsampling = {toml.text(measured.sampling)}\n'
        config.write_text(f"{server}{model}{kinds}")
        with local_daemon(config) as admin:
            url = admin.status().address
            for _ in range(2):  # a new worker is slow at first: pages and kernels it has not touched
                _replay(url, [Item(0.0, name, _IN, _OUT)] * _STREAMS)
            gap = 2 * cost.alone(name, _IN, output) + 0.2  # so that one ends before the next begins
            singles = _replay(url, [Item(i * gap, name, _IN, output) for i in range(repeats)])
            together = _replay(url, [Item(0.0, name, _IN, output)] * _STREAMS)
    return fitted(cost, name, singles, together)


def fitted(cost: CostTable, name: str, singles: Records, together: Records) -> Overhead:
    """Extra seconds of a step at batch 1 and at ``_STREAMS`` give a constant and a part per token."""
    context = _IN + singles.workload.items[0].output_tokens / 2
    one = _step(singles) - cost.decode(name, 1, context, 100)
    many = _step(together) - cost.decode(name, len(together.sent), context, 100)
    token = max(0.0, (many - one) / (len(together.sent) - 1))
    # No part per token can be seen: then the constant that is least wrong for both.
    batch = max(0.0, one - token if token > 0 else (one + many) / 2)
    first = median((singles.first - singles.sent).tolist()) - cost.prefill(name, _IN, 0, 100)
    return Overhead(batch=batch, token=token, request=max(0.0, first - batch - token))


def _step(records: Records) -> float:
    """Median seconds a token after the first."""
    outputs = np.array([item.output_tokens for item in records.workload.items])
    return float(np.median((records.end - records.first) / (outputs - 1)))


def _replay(url: str, items: list[Item]) -> Records:
    run = Replay(Workload(items, {}), url, greedy=False, progress=lambda done: None)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run.run())
