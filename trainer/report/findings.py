"""What an analysis found, in the one form that the terminal, a file and the report share.

An analysis (audit, baselines, evaluation ...) says sentences, tables and figures; it does not know how they are shown.
The report does not know what they are about. They meet in ``RUN/findings/NAME.json``.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent.contract import settings
from edge_agent.contract.bundle import replace_file

FOLDER = "findings"

Cell = str | int | float | None
"""Of a table; None is shown as a dash: there was nothing to measure."""


class FindingsError(Exception):
    """A file of findings that cannot be read; the message names it and why."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. ``note`` says what the reader must know to read it right."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: a row has {len(row)} cells, there are {len(self.columns)}")


@dataclass(frozen=True)
class Series:
    """Points of one line or one set of bars; ``low`` and ``high`` are the ends of its interval, or empty."""

    name: str
    x: tuple[float | str, ...]
    y: tuple[float | None, ...]
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y) or any(len(end) not in (0, len(self.x)) for end in (self.low, self.high)):
            raise ValueError(f"series {self.name!r}: x, y, low and high differ in length")


@dataclass(frozen=True)
class Figure:
    """A chart. `lines`: series over numbers; `bars`: over names; `points`: scatter; `matrix`: one series a row, over
    the names of the columns (a confusion matrix). ``x_label`` and ``y_label`` carry the units."""

    kind: Literal["lines", "bars", "points", "matrix"]
    title: str
    series: tuple[Series, ...]
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    note: str = ""


@dataclass(frozen=True)
class Findings:
    """What one analysis found. ``lead`` are its main sentences, most important first; ``limits`` what it does not show;
    ``warnings`` sentences a reader must see before anything else (a simple rule beats the model)."""

    name: str  # of the analysis: letters, digits and dashes; also the file's
    title: str
    command: str  # that makes these findings again
    generated: bool  # from generated traffic, at least in part
    lead: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    limits: tuple[str, ...] = ()

    def save(self, run: Path) -> Path:
        """Write to ``run``/findings/NAME.json, replacing what an earlier analysis of this name found."""
        path = run / FOLDER / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(_plain(dataclasses.asdict(self)), indent=1, ensure_ascii=False) + "\n").encode())
        return path

    def text(self) -> Iterator[str]:
        """Lines for a terminal; figures are only named."""
        yield f"{self.title}{' (generated traffic)' if self.generated else ''}"
        yield from (f"! {sentence}" for sentence in self.warnings)
        yield from (f"- {sentence}" for sentence in self.lead)
        for table in self.tables:
            yield ""
            yield from _lines(table)
        yield from (f"does not show: {sentence}" for sentence in self.limits)


def load(run: Path) -> tuple[Findings, ...]:
    """All findings of a run folder by name; FindingsError names a file that is none."""
    found = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            found.append(settings.build(Findings, json.loads(path.read_bytes()), str(path)))
        except settings.SettingsError as error:
            raise FindingsError(str(error)) from error
        except (OSError, ValueError, RecursionError) as error:
            raise FindingsError(f"{path}: not findings: {error}") from error
    return tuple(found)


def number(value: Cell) -> str:
    """A cell as people read it: three significant digits, thousands apart, a dash for nothing.

    >>> number(1234567), number(0.0123456), number(None), number(1234.5), number("x"), number(0.9995)
    ('1,234,567', '0.0123', '–', '1,234', 'x', '0.9995')
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if 0.9 < abs(value) < 1:  # what is close to one is read by how far from it
        return f"{value:.4f}".rstrip("0") if abs(value) < 0.99995 else f"{value:.6g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _lines(table: Table) -> Iterator[str]:
    cells = [table.columns, *(tuple(number(c) for c in row) for row in table.rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(table.columns))]
    yield table.title
    for row in cells:
        yield "  " + "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
    if table.note:
        yield f"  {table.note}"


def _plain(value: object) -> object:
    """JSON has no infinity and no NaN: nothing was measured."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
