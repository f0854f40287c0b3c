"""Problems for the tests of placement: random small ones, and the published inputs where they are."""

from pathlib import Path

import pytest
from hypothesis import strategies as st

from muxd.cost.analytic import Roofline
from muxd.cost.published import Published
from muxd.cost.shapes import CATALOGUE
from muxd.placement.planner import Effort
from muxd.placement.problem import Gpus, ModelLoad, Problem
from muxd.placement.released import OUTPUT, PROMPT

GB = 10**9
SIZES = ["llama-3.2-1b", "llama-3.2-3b", "llama-3-8b", "qwen2.5-14b", "qwen2.5-32b"]
QUICK = Effort(steps=60, walks=1, groups=60, sets=300)
COSTS = Roofline("a100", {name: CATALOGUE[name] for name in SIZES})
PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "muxserve"


def load(name: str, size: str, rate: float, prompt: int = 161, output: int = 337) -> ModelLoad:
    return ModelLoad(name, size, CATALOGUE[size], rate, prompt, output)


@st.composite
def problems(draw: st.DrawFn, most: int = 6) -> Problem:
    """1 to ``most`` models on one or two hosts of 1, 2 or 4 devices, from idle to overloaded."""
    models = draw(
        st.lists(
            st.tuples(
                st.sampled_from(SIZES),
                st.floats(0.01, 60, allow_nan=False),
                st.integers(1, 800),
                st.integers(1, 600),
            ),
            min_size=1,
            max_size=most,
        )
    )
    gpus = Gpus("A100", draw(st.sampled_from([24, 48, 80])) * GB, draw(st.sampled_from([1, 2, 4])),
                draw(st.integers(1, 2)))  # fmt: skip
    loads = tuple(load(f"m{i}", *known) for i, known in enumerate(models))
    return Problem(loads, gpus, draw(st.sampled_from([0, 20])))


def published_table() -> Published:
    """Skips where the table is not there."""
    path = PUBLISHED / "llama-a100-latency.json"
    if not path.is_file():
        pytest.skip(f"MuxServe's latency table is not in {PUBLISHED}")
    return Published.read(path)


def chatlmsys(condensed: int) -> Problem:
    """The 16 models of MuxServe's ChatLMSYS workload on 4 hosts of 8 A100s. Skips where it is not there."""
    yaml = pytest.importorskip("yaml")
    path = PUBLISHED / f"chatlmsys-x{condensed}.yaml"
    if not path.is_file():
        pytest.skip(f"MuxServe's workloads are not in {PUBLISHED}")
    known = yaml.safe_load(path.read_text())
    models = tuple(load(m["name"], m["model"], m["rate"], PROMPT, OUTPUT) for m in known["models"])
    cluster = known["cluster"]
    return Problem(models, Gpus("A100-80G", 80 * GB, cluster["ngpus_per_node"], cluster["nnodes"]))
