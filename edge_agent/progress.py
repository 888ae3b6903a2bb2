"""The progress of a long computation: a bar on a terminal, a plain line from time to time elsewhere.

It is shown on stderr, so that stdout has the results only. Rich is imported only for a terminal; where it is not
installed (on a gateway), terminals show plain lines too.
"""

import importlib.util
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

FIRST_S, EVERY_S = 2.0, 5.0
"""Seconds until the first plain line, since shorter work needs none, and between two of them."""


class Progress:
    """Context manager that shows the progress of one computation of ``total`` steps (None: unknown)."""

    def __init__(self, label: str, total: int | None = None, stream: TextIO | None = None):
        self._label, self._total = label, total
        self._stream = stream if stream is not None else sys.stderr
        self._done = 0
        self._due = time.monotonic() + FIRST_S
        self._bar: Bar | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> "Progress":
        if self._stream.isatty() and importlib.util.find_spec("rich"):
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(file=self._stream),
                transient=True,
            )
            self._task = self._bar.add_task(self._label, total=self._total, note="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, steps: int = 1, note: str = "") -> None:
        """Show that ``steps`` more steps are done; ``note`` is shown beside their number."""
        self._done += steps
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=steps, note=note)
        elif time.monotonic() >= self._due:
            self._due = time.monotonic() + EVERY_S
            of = f"{self._done:,}" if self._total is None else f"{self._done:,}/{self._total:,}"
            with suppress(OSError):  # a stream that cannot be written is no reason to stop the computation
                print(f"{self._label}: {of} {note}".rstrip(), file=self._stream, flush=True)
