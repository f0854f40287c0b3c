"""A model as placement sees it: its shape, and how much it is asked for, measured or expected."""

from msgspec import Struct, structs

from muxd.cost.shapes import ModelShape, of_spec
from muxd.fleet.catalog import Entry
from muxd.placement.problem import ModelLoad

RATE = 1.0  # requests a second of a model of which nothing is known
PROMPT, OUTPUT = 161, 337  # tokens, means: ShareGPT's, as in ``placement.loads``


class Demand(Struct, frozen=True):
    """``rate`` in requests a second; mean tokens of prompts and answers, 0 where there were none."""

    rate: float
    prompt: float
    output: float


def shape(entry: Entry) -> ModelShape:
    """Of an opened entry, as each of its devices has it: of a model that is cut, a rank's part."""
    assert entry.opened is not None
    plan, found = entry.opened.plan, of_spec(entry.opened.rank_spec, entry.config.kv_dtype)
    counted = plan.packed or plan.lora or entry.config.tp > 1
    return structs.replace(found, packed=plan.bytes if counted else 0)


def load_of(entry: Entry, demand: Demand | None = None) -> ModelLoad:
    """Of an opened entry; without a measured demand what its configuration expects."""
    assert entry.opened is not None
    config = entry.config
    return ModelLoad(
        name=entry.name,
        cost=entry.name,
        shape=shape(entry),
        rate=max(1e-3, demand.rate) if demand else config.rate or RATE,
        prompt=max(1, round(demand.prompt if demand and demand.prompt else PROMPT)),
        output=max(1, round(demand.output if demand and demand.output else OUTPUT)),
        dtype=entry.opened.plan.dtype,
        ttft_slo=config.ttft_slo,
        tpot_slo=config.tpot_slo,
    )
