"""Results of a GPU run as a section for docs/measurements.md: what was measured, and what was not.

Standard library only. Of a stage that was cut short what it had found counts; of one without a file there is
nothing to show.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from provenance import Machine, markdown_table
from stages import Done

_NUMBERS = ("tests", "failures", "errors", "skipped")


def section(results: Path, about: Machine, done: list[Done], *, rehearsal: bool = False) -> str:
    kind = "rehearsal on the CPU, no measurements" if rehearsal else "everything in one command (GPU)"
    lines = [f"## {about.fields['date']}, {kind}", "", f"`python benchmarks/gpu_all.py`. {about.line}.", ""]
    rows = [[one.step, one.state, f"{one.seconds:.0f}", one.why] for one in done]
    lines += [markdown_table(["step", "state", "s", "why"], rows), ""]
    for one in done:
        with suppress(Exception):  # a file that is broken off may hold anything
            if one.state != "not run" and (text := _text(results, one.step)):
                whole = "" if one.state == "good" else " (not all of it)"
                lines += [f"### {one.step}{whole}", "", text, ""]
    return "\n".join(lines)


def _text(results: Path, step: str) -> str:
    """From the file that the stage has left, whatever its kind; "" for a stage that leaves none."""
    for ending, text in _KINDS.items():
        if (file := results / f"{step}{ending}").exists():
            return text(file)
    return ""


def _counts(file: Path) -> str:
    """Counts alone: a host on which everything is left out has shown nothing."""
    suite = next(ElementTree.parse(file).iter("testsuite"))
    run, failed, broken, left_out = (int(suite.get(key, 0)) for key in _NUMBERS)
    rows = [[str(run - failed - broken - left_out), str(failed + broken), str(left_out)]]
    return markdown_table(["passed", "failed", "left out"], rows)


def _json(file: Path) -> str:
    found = json.loads(file.read_text())
    return _findings(found["findings"]) if "findings" in found else _roofline(found)


def _findings(findings: list[dict[str, str]]) -> str:
    rows = [[one["check"], one["state"], one["found"]] for one in findings]
    return markdown_table(["what", "state", "found"], rows)


def _roofline(found: dict[str, Any]) -> str:
    rows = [
        [
            *(line[key] for key in ("model", "kernel", "shape")),
            *(f"{1e6 * line['seconds']:.1f}", f"{line['fraction']:.0%}", line["bound_by"], line["note"]),
        ]
        for line in found["results"]
    ]
    peaks = found["peaks"]
    rates = peaks["bytes_per_second"] / 1e12, peaks["flops_per_second"] / 1e12
    head = f"Measured here: {rates[0]:.2f} TB/s, {rates[1]:.0f} TFLOP/s in bfloat16."
    return (
        f"{head}\n\n{markdown_table(['model', 'what', 'shape', 'us', 'of bound', 'bound by', 'note'], rows)}"
    )


def _answers(file: Path) -> str:
    """One table for each question of a probe, with a column for everything that any answer names."""
    by_question: dict[str, list[dict[str, Any]]] = {}
    for line in file.read_text().splitlines():
        answer = json.loads(line)
        by_question.setdefault(answer.pop("question"), []).append(answer)
    texts = []
    for question, answers in by_question.items():
        heads = list(dict.fromkeys(key for answer in answers for key in answer))
        rows = [[str(answer.get(key, "")) for key in heads] for answer in answers]
        texts.append(f"{question}\n\n{markdown_table(heads, rows)}")
    return "\n\n".join(texts)


_KINDS: dict[str, Callable[[Path], str]] = {
    ".md": lambda file: file.read_text().strip(),
    ".jsonl": _answers,
    ".xml": _counts,
    ".json": _json,
}
