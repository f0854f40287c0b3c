"""What a model is reckoned to take of a GPU beside its weights, by part: arithmetic, no measurement.

    python benchmarks/footprint.py [--models llama-3-8b] [--running 128] [--memory 141] [--split auto]

The daemon's own budgets (``placement/memory.py``) for a GPU in four parts, MB (a million bytes) a model. A
part is what the whole is less without it, of prompts and steps what their graphs work in; the rest is what
other prompts are computed in and what sampling keeps.
"""

import argparse

from msgspec import structs

from muxd.cli.tables import render
from muxd.config import Config, ModelConfig, SchedulerConfig
from muxd.cost.shapes import known
from muxd.fleet.pool_sizes import workers_budget
from muxd.placement.memory import Budget, fixed
from muxd.placement.problem import ModelLoad

# What each is less without.
_PARTS = {
    "contexts": "context", "graphs": "graphs", "workspaces": "streams", "tables": "tables",
    "prompts": "prompt_sets", "steps": "sets",
}  # fmt: skip
_MODELS = "qwen2.5-0.5b,llama-3.2-1b,llama-3-8b,qwen2.5-14b,qwen2.5-32b"


class Gpu:
    """Four parts, as MPS and green contexts give."""

    kind, rungs, parts = "a GPU", (25, 50, 75, 100), 4

    def __init__(self, memory: int):
        self.memory = memory


def beside(model: ModelLoad, budget: Budget) -> int:
    """Bytes beside the weights."""
    return fixed(model, 1, budget) - model.shape.weight_bytes(1, model.dtype)


def row(name: str, running: int, budget: Budget) -> list[str]:
    shape = known(name)
    model = ModelLoad(name, name, shape, 1.0, 100, 100)
    own = structs.replace(budget, max_running=running)
    whole = beside(model, own)
    parts = [whole - beside(model, structs.replace(own, **{field: 0})) for field in _PARTS.values()]
    parts[-1] -= parts[-2]  # without sets there are no graphs at all
    return [name, str(running), *(f"{nbytes / 1e6:.0f}" for nbytes in (whole, *parts, whole - sum(parts)))]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default=_MODELS)
    parser.add_argument("--running", default="128,32", help="sequences that are decoded together")
    parser.add_argument("--memory", type=float, default=141, help="of the GPU, GB")
    parser.add_argument(
        "--split", choices=("auto", "yes", "no"), default="auto", help="scheduler.split_phases"
    )
    args = parser.parse_args()
    config = Config(
        scheduler=SchedulerConfig(split_phases=args.split), model=[ModelConfig("a", "a", device="cuda:0")]
    )
    budget = workers_budget(config, Gpu(int(args.memory * 1e9)))
    rows = [
        row(name, int(running), budget)
        for name in args.models.split(",")
        for running in args.running.split(",")
    ]
    head = ["model", "running", "MB", *_PARTS, "the rest"]
    print(render(head, rows))


if __name__ == "__main__":
    main()
