"""The findings of an analysis, in the one form that the terminal, a file and the report share.

An analysis (audit, baselines, evaluation ...) makes sentences, tables and figures; it does not know how they are shown.
The report does not know what they are about. They meet in ``RUN/findings/NAME.json``.
"""

import dataclasses
import io
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edge_agent.contract import settings
from edge_agent.contract.bundle import replace_file

FOLDER = "findings"

Cell = str | int | float | None
"""A cell of a table; None is shown as a dash: there was nothing to measure."""


class FindingsError(Exception):
    """A file of findings that cannot be read; the message names it and the reason."""


@dataclass(frozen=True)
class Table:
    """Rows of cells under named columns. ``note`` is what a reader must know to read the table correctly."""

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
    """A chart. `lines` are series over numbers, `bars` over names, `points` are a scatter plot; a `matrix` has one
    series a row, over the names of its columns (a confusion matrix). ``x_label`` and ``y_label`` carry the units."""

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
    """All findings of one analysis."""

    name: str
    """Name of the analysis, and of its file: letters, digits and dashes."""
    title: str
    command: str
    """Command that makes these findings again."""
    generated: bool
    """True if the traffic was generated, at least in part."""
    lead: tuple[str, ...] = ()
    """Main sentences, the most important first."""
    warnings: tuple[str, ...] = ()
    """Sentences that a reader must see before anything else (a simple rule beats the model)."""
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    limits: tuple[str, ...] = ()
    """Sentences that say what the analysis does not show."""

    def save(self, run: Path) -> Path:
        """Write to ``run``/findings/NAME.json, replacing the earlier findings of that name, and return the path."""
        path = run / FOLDER / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _finite(dataclasses.asdict(self))
        replace_file(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
        return path

    def text(self, width: int | None = None) -> Iterator[str]:
        """Yield lines for a terminal ``width`` characters wide; figures are left out.

        The default width is that of the terminal on stdout; without a terminal, lines are as long as their tables.
        """
        if width is None and sys.stdout.isatty():
            width = shutil.get_terminal_size().columns
        yield f"{self.title}{' (generated traffic)' if self.generated else ''}"
        yield from (f"! {sentence}" for sentence in self.warnings)
        yield from (f"- {sentence}" for sentence in self.lead)
        for table in self.tables:
            yield ""
            yield from _lines(table, width)
        yield from (f"does not show: {sentence}" for sentence in self.limits)


def load(run: Path) -> tuple[Findings, ...]:
    """Return all findings of a run folder by name; FindingsError names a file that does not hold any."""
    items = []
    for path in sorted((run / FOLDER).glob("*.json")):
        try:
            items.append(settings.build(Findings, json.loads(path.read_bytes()), str(path)))
        except settings.SettingsError as error:
            raise FindingsError(str(error)) from error
        except (OSError, ValueError, RecursionError) as error:
            raise FindingsError(f"{path}: not findings: {error}") from error
    return tuple(items)


def number(value: Cell) -> str:
    """Return a cell as people read it: three significant digits, groups of thousands, a dash for nothing.

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
    if 0.9 < abs(value) < 1:  # the distance from one matters
        return f"{value:.4f}".rstrip("0") if abs(value) < 0.99995 else f"{value:.6g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _lines(table: Table, width: int | None) -> Iterator[str]:
    """Yield a table as lines, with cells wrapped between words where it would be wider than ``width``."""
    from rich import console
    from rich import table as rich_table
    from rich.text import Text

    rows = [table.columns, *(tuple(number(cell) for cell in row) for row in table.rows)]
    widths = _widths(rows, width)
    grid = rich_table.Table(box=None, padding=(0, 0, 0, 2), header_style="")
    for i, name in enumerate(table.columns):
        grid.add_column(Text(name), justify="left" if i == 0 else "right", vertical="top", width=widths[i])
    for row in rows[1:]:
        grid.add_row(*map(Text, row))
    out = console.Console(file=io.StringIO(), width=sum(widths) + 2 * len(widths), color_system=None)
    with out.capture() as captured:
        out.print(grid)
    yield table.title
    yield from (line.rstrip() for line in captured.get().splitlines())
    if table.note:
        yield f"  {table.note}"


def _widths(rows: list[tuple[str, ...]], width: int | None) -> list[int]:
    """Return the widths of columns two characters apart: no word is broken, even where the table gets too wide.

    >>> _widths([("device", "false alerts"), ("plug", "3")], None), _widths([("device", "false alerts")], 20)
    ([6, 12], [6, 10])
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    words = [
        max((len(word) for cell in column for word in cell.split()), default=0) for column in zip(*rows, strict=True)
    ]
    while width is not None and sum(widths) + 2 * len(widths) > width:
        slack = [i for i in range(len(widths)) if widths[i] > words[i]]
        if not slack:
            break
        widths[max(slack, key=lambda i: widths[i])] -= 1
    return widths


def _finite(value: object) -> object:
    """Return ``value`` without infinity and NaN, which JSON does not have: they become None, nothing was measured."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
