"""Public traces: who asked when, and how long prompt and answer were. ``KINDS`` says which column is what.

Rows need not be in order of time. Columns are kept as numbers, not as rows: a week of Azure's is 27 million.
"""

import csv
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from muxd.errors import ConfigError
from muxd.sim.lengths import LONGEST


@dataclass(frozen=True)
class Kind:
    """Which column is what. Others are left alone: files of one kind have more or fewer."""

    time: str
    prompt: str
    output: str
    model: str = ""
    dates: bool = False
    per_second: float = 1.0  # units of time in a second

    @property
    def needed(self) -> list[str]:
        return [name for name in (self.time, self.prompt, self.output, self.model) if name]


KINDS = {
    "azure": Kind("TIMESTAMP", "ContextTokens", "GeneratedTokens", dates=True),
    "burstgpt": Kind("Timestamp", "Request tokens", "Response tokens", "Model"),
    "mooncake": Kind("timestamp", "input_length", "output_length", per_second=1000.0),
}


@dataclass
class Trace:
    """The columns of a file: seconds from any origin, tokens, and the model's place in ``models``."""

    path: Path
    kind: str
    times: "array[float]" = field(default_factory=lambda: array("d"))
    prompts: "array[int]" = field(default_factory=lambda: array("q"))
    outputs: "array[int]" = field(default_factory=lambda: array("q"))
    model: "array[int]" = field(default_factory=lambda: array("q"))  # empty where the kind has none
    models: dict[str, int] = field(default_factory=dict)  # each with the first line that has it


def read(path: Path, kind: str) -> Trace:
    """Raises ConfigError naming file, line and column."""
    if kind not in KINDS:
        raise ConfigError(f"--kind {kind!r}: say what the trace is: {', '.join(KINDS)}")
    trace, columns = Trace(path, kind), KINDS[kind]
    place: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _json_rows(file, columns, path) if kind == "mooncake" else _csv_rows(file, columns, path)
            for line, cells in rows:
                where = f"{path}, line {line}"
                trace.times.append(_seconds(cells[0], columns, where))
                trace.prompts.append(_tokens(cells[1], columns.prompt, where))
                trace.outputs.append(_tokens(cells[2], columns.output, where))
                if columns.model:
                    name = _filled(cells[3], columns.model, where)
                    trace.model.append(place.setdefault(name, len(place)))
                    trace.models.setdefault(name, line)
    except OSError as error:
        raise ConfigError(f"cannot read the trace {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error.reason}") from None
    if not trace.times:
        raise ConfigError(f"{path} holds no requests")
    return trace


def _csv_rows(lines: Iterable[str], columns: Kind, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The cells that are needed, of each row after the header, and its line."""
    rows = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        _check_columns(header, columns, f"{path}, line 1")
        places = [header.index(name) for name in columns.needed]
        for row in rows:
            if len(row) != len(header):
                filled = f"has {len(row)} of {len(header)} columns" if row else "is empty"
                raise ConfigError(f"{path}, line {rows.line_num}: the row {filled}: mend it or take it out")
            yield rows.line_num, [row[place] for place in places]
    except csv.Error as error:
        raise ConfigError(f"{path}, line {rows.line_num} is not CSV: {error}") from None


def _json_rows(lines: Iterable[str], columns: Kind, path: Path) -> Iterator[tuple[int, list[Any]]]:
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            raise ConfigError(f"{where}: the row is empty: mend it or take it out")
        try:
            row = decode(line)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ConfigError(f"{where} is not a JSON object: {error}; is --kind right?") from None
        _check_columns(row, columns, where)
        yield number, [row[name] for name in columns.needed]


def _check_columns(found: Sequence[str] | dict[str, Any], columns: Kind, where: str) -> None:
    missing = [name for name in columns.needed if name not in found]
    if missing:
        there = _shown(", ".join(found), 80) if found else "none"
        raise ConfigError(f"{where}: column {missing[0]!r} is missing, there is {there}; is --kind right?")
    if len(set(found)) < len(found):
        raise ConfigError(f"{where}: two columns have the same name")


def _seconds(cell: Any, columns: Kind, where: str) -> float:
    try:
        if columns.dates:
            moment = datetime.fromisoformat(cell.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if not isinstance(cell, bool) and abs(seconds := float(cell) / columns.per_second) < float("inf"):
            return seconds
    except (TypeError, ValueError, OverflowError):
        pass
    kind = "a date and time such as 2023-11-16 18:15:46.68" if columns.dates else "a number"
    raise ConfigError(f"{where}, column {columns.time}: {_shown(cell)} is not {kind}")


def _tokens(cell: Any, column: str, where: str) -> int:
    try:
        count = int(cell) if isinstance(cell, str) else cell
        if type(count) is int and 0 <= count <= LONGEST:
            return count
    except ValueError:
        pass
    raise ConfigError(
        f"{where}, column {column}: {_shown(cell)} is not a number of tokens from 0 to {LONGEST:,}"
    )


def _filled(cell: str, column: str, where: str) -> str:
    if not cell.strip():
        raise ConfigError(f"{where}, column {column}: is empty")
    return cell.strip()


def _shown(cell: Any, most: int = 40) -> str:
    text = repr(cell)
    return text if len(text) <= most else f"{text[:most]}..."
