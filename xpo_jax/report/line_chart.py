"""Draws line and point charts as SVG, in the reader's light or dark theme.

Colours are CSS classes, set by the stylesheet of the page; a standalone file contains
its own. The SVG needs no script, font or other file.
"""

import html
import itertools
import math
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WIDTH, HEIGHT = 640, 360
_LEFT, _RIGHT, _BOTTOM = 62, 16, 46
_LEGEND_LINE, _CHARACTER = 18, 7.4
_POINTS = 150  # a longer curve is shown as means of equal segments
COLOURS, DASHES = 8, 3

STYLE = """
.chart { font: 13px system-ui, sans-serif; color: #57606a; }
.chart text { fill: currentColor; }
.chart .title { font-weight: 600; font-size: 15px; fill: #1f2328; }
.chart .small { font-size: 13px; }
.chart .stripe { fill: #8c959f; opacity: .09; }
.chart .absent { font-size: 11px; opacity: .7; }
.chart .grid { stroke: #d0d7de; stroke-width: 1; opacity: .6; }
.chart .axis { stroke: #8c959f; stroke-width: 1; }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.chart .bar { stroke-width: 1.25; opacity: .75; }
.chart .label { paint-order: stroke; stroke: var(--paper, #fff); stroke-width: 3px; }
.chart .band { opacity: .16; stroke: none; }
.c0 { --c: #0969da; } .c1 { --c: #bc4c00; } .c2 { --c: #1a7f37; } .c3 { --c: #8250df; }
.c4 { --c: #bf3989; } .c5 { --c: #0e7c86; } .c6 { --c: #9a6700; } .c7 { --c: #a40e26; }
.chart .dashed { stroke-dasharray: 5 4; }
.d0, .d1, .d2 { --c: #57606a; stroke-dasharray: 6 4; }
.d1 { stroke-dasharray: 2 3; } .d2 { stroke-dasharray: 9 3 2 3; }
.chart .stroke { stroke: var(--c); } .chart .fill { fill: var(--c); }
@media (prefers-color-scheme: dark) {
  .chart { color: #9198a1; }
  .chart .title { fill: #f0f6fc; }
  .chart .grid { stroke: #3d444d; } .chart .axis { stroke: #656c76; }
  .c0 { --c: #58a6ff; } .c1 { --c: #ff9b50; } .c2 { --c: #4ac26b; }
  .c3 { --c: #c297ff; } .c4 { --c: #ff80c8; } .c5 { --c: #39c5cf; }
  .c6 { --c: #e3b341; } .c7 { --c: #ff7b72; }
  .d0, .d1, .d2 { --c: #9198a1; }
}
"""
PAPER = """
.paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) { .paper { fill: #0d1117; } }
"""


class Series(NamedTuple):
  """One curve or set of points; non-finite values are gaps.

  Attributes:
    name: in the legend.
    x, y: values.
    low, high: interval of y: a band along a line, bars at points.
    x_low, x_high: interval of x, bars at points.
    kind: "line", "points", "both" (points joined by a line), or "dashed": a
      reference for the others, in grey.
    labels: text beside each point.
  """

  name: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None
  x_low: Sequence[float] | None = None
  x_high: Sequence[float] | None = None
  kind: str = "line"
  labels: Sequence[str] | None = None


class Figure(NamedTuple):
  """A chart as data.

  Attributes:
    title, x_label, y_label: text; labels name the unit.
    series: drawn in order.
    x_range, y_range: what is shown; None fits the data. What lies outside is cut.
    note: a sentence under the chart.
  """

  title: str
  x_label: str
  y_label: str
  series: Sequence[Series]
  x_range: tuple[float, float] | None = None
  y_range: tuple[float, float] | None = None
  note: str = ""


def condense(x: Sequence[float], y: Sequence[float], name: str) -> Series:
  """Reduces a curve to at most 150 means, with the 10-90 % band of each segment."""
  x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
  finite = np.isfinite(y)
  x, y = x[finite], y[finite]
  if x.size <= _POINTS:
    return Series(name, x, y)
  groups = list(
    zip(np.array_split(x, _POINTS), np.array_split(y, _POINTS), strict=True)
  )
  low, high = np.array([np.percentile(y, [10, 90]) for _, y in groups]).T
  means = np.array([(x.mean(), y.mean()) for x, y in groups]).T
  return Series(name, means[0], means[1], low, high)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Chooses about `count` round numbers (1, 2 or 5 times 10^n) within a range."""
  step = 10 ** math.floor(math.log10((high - low) / count))
  step *= next(m for m in (1, 2, 5, 10) if (high - low) / (m * step) <= count)
  first = math.ceil(low / step - 1e-9)
  # Rounded: 3 * 0.1 must read 0.3.
  digits = max(0, -math.floor(math.log10(step)))
  values = [round(i * step, digits) for i in range(first, first + 2 * count + 2)]
  return [value + 0.0 for value in values if value <= high + 1e-9 * step]


def svg(figure: Figure, standalone: bool = False) -> str:
  """Draws the figure as an SVG element.

  Args:
    figure: what to draw.
    standalone: include the style and a background, for a file of its own.

  Raises:
    ValueError: x, y or an interval of a series differ in length.
  """
  for series in figure.series:
    _check(series)
  legend, top = _legend(figure.series)
  x_range = figure.x_range or _range(figure.series, ("x", "x_low", "x_high"), pad=0.02)
  y_range = figure.y_range or _range(figure.series, ("y", "low", "high"), pad=0.06)
  across = _scale(x_range, (_LEFT, WIDTH - _RIGHT))
  up = _scale(y_range, (HEIGHT - _BOTTOM, top))
  # A little wider than the axes, so that a point on the edge is whole.
  box = f'x="{_LEFT - 5}" y="{top - 5}" width="{WIDTH - _RIGHT - _LEFT + 10}"'
  box += f' height="{HEIGHT - _BOTTOM - top + 10}"'
  # Unique in a page of many charts.
  identity = repr((figure.title, figure.y_label, x_range, y_range))
  clip = f"clip{zlib.crc32(identity.encode()):08x}"
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
    f'viewBox="0 0 {WIDTH} {HEIGHT}" aria-label="{html.escape(figure.title)}">',
    f"<style>{STYLE}{PAPER}</style>" if standalone else "",
    f'<rect class="paper" width="{WIDTH}" height="{HEIGHT}"/>' if standalone else "",
    f'<clipPath id="{clip}"><rect {box}/></clipPath>',
    f'<text class="title" x="{_LEFT}" y="18">{html.escape(figure.title)}</text>',
    legend,
    _axes(figure, x_range, y_range, across, up, top),
    f'<g clip-path="url(#{clip})">',
    *(
      _draw(series, colour, across, up)
      for series, colour in zip(figure.series, _classes(figure.series), strict=True)
    ),
    "</g></svg>",
  ]
  return "\n".join(part for part in parts if part)


def _check(series: Series) -> None:
  columns = [series.y, series.low, series.high, series.x_low, series.x_high]
  sizes = {len(c) for c in (series.x, *columns, series.labels) if c is not None}
  if len(sizes) > 1 or series.kind not in ("line", "dashed", "points", "both"):
    raise ValueError(
      f"series {series.name!r}: lengths {sorted(sizes)} must agree and kind "
      f"{series.kind!r} be one of line, dashed, points, both"
    )


def _classes(series: Sequence[Series]) -> list[str]:
  """A colour for each, or a dash where it is grey."""
  colours, dashes = itertools.count(), itertools.count()
  return [
    f"d{next(dashes) % DASHES}" if s.kind == "dashed" else f"c{next(colours) % COLOURS}"
    for s in series
  ]


def _legend(series: Sequence[Series]) -> tuple[str, float]:
  """The legend's entries, wrapped, and where the plot may begin."""
  x, y, parts = _LEFT, 38, []
  for entry, colour in zip(series, _classes(series), strict=True):
    if not entry.name:
      continue
    width = 34 + _CHARACTER * len(entry.name)
    if x + width > WIDTH - _RIGHT and x > _LEFT:
      x, y = _LEFT, y + _LEGEND_LINE
    mark = f'<line class="line stroke" x1="{x}" x2="{x + 14}" y1="{y - 4}" '
    mark += f'y2="{y - 4}"/>'
    if entry.kind == "points":
      mark = f'<circle class="fill" cx="{x + 7}" cy="{y - 4}" r="4"/>'
    label = f'<text x="{x + 19}" y="{y}">{html.escape(entry.name)}</text>'
    parts.append(f'<g class="{colour}">{mark}{label}</g>')
    x += width
  return "\n".join(parts), (y + 12 if parts else 30)


def _range(series: Sequence[Series], fields: Sequence[str], pad: float):
  names = Series._fields
  columns = [entry[names.index(field)] for entry in series for field in fields]
  values = [np.asarray(c, np.float64) for c in columns if c is not None]
  values = np.concatenate(values) if values else np.zeros(0)
  values = values[np.isfinite(values)]
  low, high = (values.min(), values.max()) if values.size else (0.0, 1.0)
  if high - low < 1e-9 * max(abs(low), abs(high), 1e-9):
    low, high = low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
  margin = pad * (high - low)
  return float(low - margin), float(high + margin)


def _scale(values, pixels):
  (low, high), (start, end) = values, pixels
  return lambda v: round(start + (end - start) * (v - low) / (high - low), 2)


def _axes(figure, x_range, y_range, across, up, top) -> str:
  bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
  parts = []
  for value in ticks(*y_range):
    y = up(value)
    parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y}" y2="{y}"/>')
    label = (
      f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{_number(value)}</text>'
    )
    parts.append(label)
  for value in _x_ticks(figure, x_range):
    x = across(value)
    parts.append(
      f'<line class="axis" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>'
      f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{_number(value)}</text>'
    )
  middle = (top + bottom) / 2
  parts += [
    f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
    f'<text x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
    f"{html.escape(figure.x_label)}</text>",
    f'<text transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
    f"{html.escape(figure.y_label)}</text>",
  ]
  return "\n".join(parts)


def _x_ticks(figure: Figure, x_range: tuple[float, float]) -> list[float]:
  """Ticks of the x axis; whole numbers where all x are whole, as steps are."""
  values = ticks(*x_range, count=7)
  columns = [np.asarray(series.x, np.float64) for series in figure.series]
  whole = all((x[np.isfinite(x)] % 1 == 0).all() for x in columns)
  return [value for value in values if value % 1 == 0] if whole else values


def _number(value: float) -> str:
  if 0 < abs(value) < 1e-3:  # 0.00032 would run into the axis's name
    digits, power = f"{value:.5e}".split("e")
    return f"{float(digits):g}e{int(power)}"
  return f"{value:.6g}"


def _draw(series: Series, colour: str, across, up) -> str:
  x, y = (np.asarray(v, np.float64) for v in (series.x, series.y))
  finite = np.isfinite(x) & np.isfinite(y)
  parts = []
  lined = series.kind != "points"
  if series.low is not None and series.high is not None:
    low, high = (np.asarray(v, np.float64) for v in (series.low, series.high))
    there = np.flatnonzero(finite & np.isfinite(low) & np.isfinite(high))
    if series.kind in ("line", "dashed"):
      edge = [(x[i], high[i]) for i in there] + [(x[i], low[i]) for i in there[::-1]]
      corners = " ".join(f"{across(a)},{up(b)}" for a, b in edge)
      parts.append(f'<polygon class="band fill" points="{corners}"/>')
    else:
      parts += [
        _bar(across(x[i]), up(low[i]), across(x[i]), up(high[i])) for i in there
      ]
  if series.x_low is not None and series.x_high is not None:
    ends = zip(series.x_low, series.x_high, y, finite, strict=True)
    parts += [_bar(across(a), up(b), across(c), up(b)) for a, c, b, ok in ends if ok]
  if lined:
    for run in np.split(np.arange(x.size), np.flatnonzero(~finite)):
      points = [f"{across(x[i])},{up(y[i])}" for i in run if finite[i]]
      if len(points) > 1:
        parts.append(f'<polyline class="line stroke" points="{" ".join(points)}"/>')
  if series.kind in ("points", "both") or (lined and finite.sum() == 1):
    for i in np.flatnonzero(finite):
      parts.append(f'<circle class="fill" cx="{across(x[i])}" cy="{up(y[i])}" r="4"/>')
  for i, label in enumerate(series.labels or ()):
    if label and finite[i]:
      left, side = across(x[i]), (7, "start")
      if left + 7 + _CHARACTER * len(label) > WIDTH - _RIGHT:  # no room on its right
        side = (-7, "end")
      at = f'x="{left + side[0]}" y="{up(y[i]) - 6}" text-anchor="{side[1]}"'
      parts.append(f'<text class="label" {at}>{html.escape(label)}</text>')
  return f'<g class="{colour}">{"".join(parts)}</g>'


def _bar(x1, y1, x2, y2) -> str:
  return f'<line class="bar stroke" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'
