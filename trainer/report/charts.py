"""Figures as SVG, drawn the same way every time: equal figures give equal bytes.

Knows how a chart looks; its content is the business of the analysis that made it.
"""

import html
import io
from typing import Any

from trainer.report.findings import Figure, number

COLOURS = ("#1f5fa8", "#c4511c", "#2e7d4f", "#7a4fa3", "#a67c00", "#c2375b", "#3a8fa0", "#666666")

INK = "#1c2430"
"""Colour of text, the same as on the page."""

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "botwatch",  # ids of clip paths: equal input, equal bytes
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


def svg(chart: Figure) -> str:
    """Return a figure as an <svg> element with its title as alternative text."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    draw = {"lines": _draw_lines, "points": _draw_lines, "bars": _draw_bars, "matrix": _draw_matrix}[chart.kind]
    with matplotlib.rc_context(_STYLE):
        figure, axes = pyplot.subplots(figsize=(7.2, _height(chart)), layout="constrained")
        draw(axes, chart)
        axes.set_title(chart.title)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    text = out.getvalue()
    text = text[text.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{html.escape(chart.title)}" ', 1)
    # ids must differ between the figures of one page
    prefix = anchor(chart.title)
    for sign in ('id="', "url(#", 'href="#'):
        text = text.replace(sign, f"{sign}{prefix}-")
    return text.replace('xmlns:xlink="http://www.w3.org/1999/xlink"', "").replace("xlink:href", "href")


def anchor(text: str) -> str:
    """Return ``text`` as an id within a page.

    >>> anchor("Errors by N")
    'Errors-by-N'
    """
    return "".join(c if c.isalnum() else "-" for c in text)


def _height(chart: Figure) -> float:
    """Return the height of a chart in inches."""
    if chart.kind == "bars":
        names = {name for series in chart.series for name in series.x}
        return 1.2 + 0.26 * len(names) * max(1, len(chart.series) * 0.6)
    if chart.kind == "matrix":
        return 1.6 + 0.32 * len(chart.series)
    return 3.4 + 0.16 * max(0, len(chart.series) - 4)


def _draw_lines(axes: Any, chart: Figure) -> None:
    for i, series in enumerate(chart.series):
        x = [float(value) for value in series.x]
        y = [float("nan") if value is None else value for value in series.y]
        colour = COLOURS[i % len(COLOURS)]
        dash = "-" if i < len(COLOURS) else "--"
        if chart.kind == "points":
            axes.plot(x, y, ".", color=colour, label=series.name)
        else:
            axes.plot(x, y, dash, color=colour, label=series.name, marker="o" if len(x) < 25 else None, markersize=3)
        if series.low and series.high:
            low, high = ([float("nan") if v is None else v for v in end] for end in (series.low, series.high))
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.grid(visible=True, color="#e3e7ec", linewidth=0.8)
    if len(chart.series) > 1 or chart.series[0].name:
        axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.18), ncols=3)


def _draw_bars(axes: Any, chart: Figure) -> None:
    names = list(dict.fromkeys(str(name) for series in chart.series for name in series.x))
    height = 0.8 / len(chart.series)
    for i, series in enumerate(chart.series):
        at = [names.index(str(name)) + (i - (len(chart.series) - 1) / 2) * height for name in series.x]
        values = [0.0 if value is None else value for value in series.y]
        axes.barh(at, values, height, color=COLOURS[i % len(COLOURS)], label=series.name)
        for place, value in zip(at, values, strict=True):
            axes.annotate(
                number(value), (value, place), (3 if value >= 0 else -3, 0), textcoords="offset points", va="center",
                ha="left" if value >= 0 else "right", fontsize=8,
            )  # fmt: skip
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(chart.x_label)
    axes.margins(x=0.12)
    if chart.log_x:
        axes.set_xscale("log")
    if len(chart.series) > 1:
        axes.legend(frameon=False, fontsize=8)


def _draw_matrix(axes: Any, chart: Figure) -> None:
    names = [str(name) for name in chart.series[0].x]
    values = [[float("nan") if value is None else value for value in series.y] for series in chart.series]
    finite = [value for row in values for value in row if value == value]
    top = max(finite, default=1.0) or 1.0
    # squares as paths: an image would be a bitmap within the page
    edges = [[i - 0.5 for i in range(n + 1)] for n in (len(names), len(values))]
    axes.pcolormesh(*edges, values, cmap="Blues", vmin=0, vmax=top, edgecolors="white", linewidth=1)
    axes.invert_yaxis()
    for i, row in enumerate(values):
        for j, value in enumerate(row):
            if value == value and value > 0.0005 * top:
                text = f"{value:.0%}" if top <= 1 else number(int(value) if value == int(value) else value)
                colour = "white" if value > top / 2 else INK
                axes.text(j, i, text, ha="center", va="center", fontsize=8, color=colour)
    slanted = len(names) > 4 or max(map(len, names)) > 10
    axes.set_xticks(
        range(len(names)), names, rotation=35 if slanted else 0, ha="right" if slanted else "center", fontsize=8
    )
    axes.set_yticks(range(len(chart.series)), [series.name for series in chart.series], fontsize=8)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
