"""What holding an answer to a form costs a token: CPU microseconds of its masks, by form and vocabulary.

    python benchmarks/masks.py FOLDER ...

The answers are written at random, of the model's own tokens that may come, so that all of a form is seen.
"""

import argparse
import json
import random
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from muxd.messages import Constraint, Sampling
from muxd.models.generation import read_generation
from muxd.models.spec import read_spec
from muxd.worker.bounds import Bounds, ruled_out

ANSWERS, TOKENS = 20, 120
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 40},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "odd"]}, "maxItems": 5},
        "home": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "zip": {"type": "string", "pattern": r"^\d{5}$"}},
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "home"],
    "additionalProperties": False,
}
FORMS = {
    "JSON schema, nested": Constraint("json_schema", json.dumps(PERSON)),
    "any JSON object": Constraint("json_object"),
    "pattern of an address": Constraint("regex", r"[\w.]{1,30}@[a-z0-9-]{1,30}(\.[a-z]{2,8}){1,3}"),
    "one of 50 choices": Constraint("choice", json.dumps([f"choice number {i}" for i in range(50)])),
    "grammar of sums": Constraint(
        "grammar", 'start: sum\nsum: part | sum ("+" | "-") part\npart: /[0-9]{1,4}/ | "(" sum ")"'
    ),
    "any text": Constraint("regex", r"(.|\n)*"),
}
# As costly as the limits of ``muxd.text.constraint`` let one be.
HOSTILE = {
    "1,000 optional properties": Constraint(
        "json_schema",
        json.dumps({"properties": {f"p{i}": {} for i in range(1000)}, "additionalProperties": False}),
    ),
    "12,000 alternatives": Constraint("grammar", "root ::= " + " | ".join(f'"{i}"' for i in range(12_000))),
    "one class of 240 KB": Constraint("grammar", f"root ::= [{'a' * 240_000}]"),
    "one literal of 240 KB": Constraint("grammar", f'root ::= "{"a" * 240_000}"'),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    for folder in parser.parse_args().folders:
        Console().print(_measured(folder))


def _measured(folder: Path) -> Table:
    spec = read_spec(folder)
    ends = read_generation(folder).eos_ids[:1] or (0,)
    bounds = Bounds(folder, spec.vocab_size)
    begun = time.process_time()
    bounds.of(Sampling(constraint=Constraint("regex", "a", ends)))
    title = f"{folder.name}: {spec.vocab_size} tokens, read once in {time.process_time() - begun:.2f} s"
    table = Table("form", "compiled, ms", "mask, µs", "worst, µs", "ruled out, µs", title=title)
    for name, form in FORMS.items():
        table.add_row(name, *_times(bounds, Constraint(form.kind, form.text, ends), spec.vocab_size))
    table.add_section()
    for name, form in HOSTILE.items():
        table.add_row(name, f"{1e3 * max(_compiled(bounds, form) for _ in range(3)):.0f}", *"---")
    return table


def _compiled(bounds: Bounds, form: Constraint) -> float:
    """CPU seconds of a grammar that was not asked for before."""
    bounds._compiled.clear()
    begun = time.process_time()
    bounds.of(Sampling(constraint=form))
    return time.process_time() - begun


def _times(bounds: Bounds, form: Constraint, size: int) -> list[str]:
    compiled, masks, applied = 0.0, [], []
    for seed in range(ANSWERS):
        draw, said = random.Random(seed), list[int]()
        begun = time.process_time()
        bound = bounds.of(Sampling(constraint=form))
        compiled = max(compiled, time.process_time() - begun)
        assert bound is not None
        while len(said) < TOKENS:
            begun = time.process_time()
            mask = bound.mask(said)
            masks.append(time.process_time() - begun)
            assert mask is not None
            begun = time.process_time()
            out = ruled_out(mask, size)
            applied.append(time.process_time() - begun)
            may = np.flatnonzero(~out)
            if not len(may) or (token := int(draw.choice(may))) in form.ends:
                break
            said.append(token)
    values = (1e3 * compiled, 1e6 * float(np.mean(masks)), 1e6 * max(masks), 1e6 * float(np.mean(applied)))
    return [f"{value:.1f}" for value in values[:1]] + [f"{value:.0f}" for value in values[1:]]


if __name__ == "__main__":
    main()
