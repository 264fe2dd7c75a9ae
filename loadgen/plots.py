"""Draws curves as SVG that takes its colours from the page, so that it is right in light and in dark.

matplotlib is an extra and imported only here. Every colour is drawn as a marker value and then replaced by
a CSS variable; `style.css` of the report, or the style inside a saved SVG, says what it stands for.
"""

import importlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadgen.curves import Curve

SERIES_COLOURS = 8
_INK, _GRID = "#010203", "#010204"
_SERIES = tuple(f"#0a0b{number:02x}" for number in range(SERIES_COLOURS))
_VARIABLES = {_INK: "var(--ink-soft)", _GRID: "var(--grid)"} | {
    marker: f"var(--series-{number})" for number, marker in enumerate(_SERIES)
}
_WIDE_RANGE = 300.0
_DASHES = ("solid", (0, (4, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))

PALETTE_CSS = """
:root { --ink: #1c2024; --ink-soft: #60646c; --grid: #e3e5ea; --paper: #fbfcfd; --card: #ffffff;
  --bad: #ce2c31; --warn: #ab6400; --series-0: #0d74ce; --series-1: #d6409f;
  --series-2: #12a594; --series-3: #e5671f; --series-4: #6e56cf; --series-5: #8d8d18; --series-6: #c2343a;
  --series-7: #60646c; }
@media (prefers-color-scheme: dark) { :root { --ink: #edeef0; --ink-soft: #9ba1aa; --grid: #2c3036;
  --paper: #0f1113; --card: #17191d; --bad: #ff9592; --warn: #ffca16;
  --series-0: #70b8ff; --series-1: #ff8dcc; --series-2: #0bd8b6; --series-3: #ffa057; --series-4: #baa7ff;
  --series-5: #d6d34c; --series-6: #ff9592; --series-7: #b0b4ba; } }
"""


class PlotsMissingError(Exception):
    """matplotlib is not installed. The message is one line."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot; lines with the same `colour` number belong together and differ by `dash`."""

    label: str
    curve: Curve
    colour: int
    dash: int = 0
    steps: bool = False


@dataclass(frozen=True, slots=True)
class Plot:
    name: str  # a file name
    title: str
    note: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    log_x: bool = False  # x is seconds, on a logarithmic axis
    fractions: bool = False  # y goes from 0 to 1


_MOST_LINES_INSIDE, _LEGEND_ROW_INCHES = 4, 0.21


def matplotlib_figure() -> Any:
    """matplotlib's Figure class; raises `PlotsMissingError` without matplotlib."""
    try:
        return importlib.import_module("matplotlib.figure").Figure
    except ImportError as error:
        raise PlotsMissingError(
            "plots are left out: matplotlib is not installed (pip install 'fairslice[plots]')"
        ) from error


def draw(plot: Plot) -> str:
    """The plot as an `<svg>` element. Raises `PlotsMissingError`."""
    figure_class = matplotlib_figure()
    matplotlib = importlib.import_module("matplotlib")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": plot.name, "font.size": 9.5}):
        below = _LEGEND_ROW_INCHES * -(-len(plot.lines) // 2) if _is_crowded(plot) else 0.0
        figure = figure_class(figsize=(5.6, 3.1 + below), layout="constrained")
        axes = figure.subplots()
        figure.patch.set_alpha(0)
        axes.patch.set_alpha(0)
        for line in plot.lines:
            _draw_line(axes, line)
        _dress(axes, plot)
        _explain(figure, axes, plot)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    return _themed(svg[svg.index("<svg") :], plot)


def _draw_line(axes: Any, line: Line) -> None:
    xs, ys = line.curve
    axes.plot(
        xs,
        ys,
        label=line.label,
        color=_SERIES[line.colour % SERIES_COLOURS],
        linestyle=_DASHES[line.dash % len(_DASHES)],
        linewidth=1.7,
        drawstyle="steps-post" if line.steps else "default",
        solid_capstyle="round",
    )


def _dress(axes: Any, plot: Plot) -> None:
    axes.set_xlabel(plot.x_label, color=_INK)
    axes.set_ylabel(plot.y_label, color=_INK)
    if plot.log_x:
        _log_seconds(axes, [x for line in plot.lines for x in line.curve[0] if x > 0])
    if plot.fractions:
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    else:
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(True, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, length=0, which="both")
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_GRID)


def _is_crowded(plot: Plot) -> bool:
    """Whether a legend among the lines would hide some."""
    return len(plot.lines) > _MOST_LINES_INSIDE


def _explain(figure: Any, axes: Any, plot: Plot) -> None:
    look = {"frameon": False, "labelcolor": _INK, "fontsize": 9}
    if _is_crowded(plot):
        figure.legend(loc="outside lower center", ncols=2, **look)
    elif len(plot.lines) > 1:
        axes.legend(**look)


def _log_seconds(axes: Any, xs: list[float]) -> None:
    """A logarithmic axis of times, marked at 1, 2 and 5 where that leaves room."""
    if not xs:
        return
    ticker = importlib.import_module("matplotlib.ticker")
    wide = max(xs) / min(xs) > _WIDE_RANGE
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1,) if wide else (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g} s" if value >= 1 else f"{value * 1000:g} ms")
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())


def _themed(svg: str, plot: Plot) -> str:
    for marker, variable in _VARIABLES.items():
        svg = svg.replace(marker, variable)
    # Texts take the page's font; the ids of one plot must not meet those of another on the same page.
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{plot.name}-", svg)
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{plot.title}" ', 1)


def standalone(svg: str) -> str:
    """An SVG file that follows the reader's light or dark setting by itself."""
    style = f"<style>{PALETTE_CSS} svg {{ background: var(--card); font-family: sans-serif; }}</style>"
    head, rest = svg.split(">", 1)
    return f"{head}>{style}{rest}"
