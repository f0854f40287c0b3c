"""What a soak is judged by, and its table, picture and JSON."""

import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from support.flatness import Judged, judge
from support.process_sizes import FIELDS, Sizes
from support.soaked import LONG

MEGA = 1 << 20
# What the fitted line may rise by over the judged part. Memory of a short run has not come to rest.
MEMORY, MEMORY_SHORT, COUNTS = 3.0 * MEGA, 24.0 * MEGA, 1.0

Looks = list[tuple[float, dict[str, Sizes]]]


def judged(looks: Looks, seconds: float) -> list[Judged]:
    """Each quantity of each role."""
    found = []
    for role in sorted({role for _, sizes in looks for role in sizes}):
        there = [(when, sizes[role]) for when, sizes in looks if role in sizes]
        for field in FIELDS:
            memory = field in ("rss", "pss")
            bound = (MEMORY if seconds >= LONG else MEMORY_SHORT) if memory else COUNTS
            times, values = [when for when, _ in there], [getattr(one, field) for _, one in there]
            found.append(judge(f"{role}: {field}", times, values, bound))
    return found


def table(rows: list[Judged]) -> str:
    """In Markdown; memory in MiB."""
    lines = [
        "| what | at the end of the warm-up | at the end | least, most | growth | error | bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unit = MEGA if row.bound >= MEGA else 1
        values = (row.begin, row.end, row.least, row.most, row.growth, row.error, row.bound)
        begin, end, least, most, growth, error, bound = (f"{value / unit:.1f}" for value in values)
        name = row.name + (" (MiB)" if unit == MEGA else "")
        lines.append(f"| {name} | {begin} | {end} | {least}, {most} | {growth} | {error} | {bound} |")
    return "\n".join(lines)


def write(folder: Path, looks: Looks, rows: list[Judged], facts: dict[str, Any]) -> None:
    """``soak.json``, ``soak.md`` and ``soak.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    text = table(rows)
    (folder / "soak.md").write_text(f"{json.dumps(facts)}\n\n{text}\n")
    whole = {"facts": facts, "judged": to_builtins(rows), "looks": to_builtins(looks)}
    (folder / "soak.json").write_text(json.dumps(whole))
    _draw(folder / "soak.png", looks, str(facts.get("title", "")))


def _draw(path: Path, looks: Looks, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(2, 2)
    panels = [
        ("rss", MEGA, "RSS, MiB"),
        ("pss", MEGA, "PSS, MiB"),
        ("fds", 1, "descriptors"),
        ("threads", 1, "threads"),
    ]
    for place, (field, unit, label) in enumerate(panels):
        axis = axes[place // 2][place % 2]
        for role in sorted({role for _, sizes in looks for role in sizes}):
            there = [
                (when / 60, getattr(sizes[role], field) / unit) for when, sizes in looks if role in sizes
            ]
            axis.plot(*zip(*there, strict=True), label=role, linewidth=1)
        axis.set_ylim(bottom=0)
        axis.set(title=label, xlabel="minutes")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=100)


def endings(sent: list[Any]) -> dict[str, dict[str, int]]:
    """Sort of client -> how many ended how."""
    counted = Counter((one.kind, str(one.ending)) for one in sent)
    return {
        kind: {ending: n for (k, ending), n in sorted(counted.items()) if k == kind}
        for kind in sorted({kind for kind, _ in counted})
    }


def now() -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
