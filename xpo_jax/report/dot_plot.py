"""Draws dot plots with intervals as SVG: a row a method, a panel a condition.

For more methods than lines and a legend can show. Colours and fonts are those of
`line_chart`.
"""

import html
from collections.abc import Sequence
from typing import NamedTuple

from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.report import line_chart

WIDTH = 960
_NAMES, _GAP, _ROW, _TOP, _BOTTOM, _RIGHT = 148, 26, 19, 108, 44, 12


class Panel(NamedTuple):
  """A column of dots.

  Attributes:
    title: above it.
    lines: name -> value of dashed lines down the panel.
  """

  title: str
  lines: dict[str, float]


class DotRow(NamedTuple):
  """A method.

  Attributes:
    name: on the left.
    group: its colour.
    cells: one for each panel: an Interval, or words that say why there is none.
  """

  name: str
  group: str
  cells: Sequence[Interval | str]


class Dots(NamedTuple):
  """The chart as data.

  Attributes:
    title: of the chart.
    x_label: of every panel; names the unit.
    panels: from left to right.
    rows: from top to bottom.
  """

  title: str
  x_label: str
  panels: Sequence[Panel]
  rows: Sequence[DotRow]


def svg(dots: Dots, standalone: bool = False) -> str:
  """Draws the chart as an SVG element.

  Args:
    dots: what to draw.
    standalone: include the style and a background, for a file of its own.

  Raises:
    ValueError: a row has not one cell for each panel.
  """
  for row in dots.rows:
    if len(row.cells) != len(dots.panels):
      raise ValueError(
        f"row {row.name!r} has {len(row.cells)} cells for {len(dots.panels)} panels"
      )
  height = _TOP + _ROW * len(dots.rows) + _BOTTOM
  style = f"<style>{line_chart.STYLE}{line_chart.PAPER}</style>"
  paper = f'<rect class="paper" width="{WIDTH}" height="{height}"/>'
  groups = list(dict.fromkeys(row.group for row in dots.rows))
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" role="img" '
    f'viewBox="0 0 {WIDTH} {height}" aria-label="{html.escape(dots.title)}">',
    style + paper if standalone else "",
    _text(12, 20, dots.title, "title"),
    _legend(groups),
    *(_name(row, i) for i, row in enumerate(dots.rows)),
  ]
  span = (WIDTH - _NAMES - _RIGHT - _GAP * (len(dots.panels) - 1)) / len(dots.panels)
  for i, panel in enumerate(dots.panels):
    left = _NAMES + i * (span + _GAP)
    parts += _panel(dots, i, panel, groups, (left, left + span), height)
  middle = (_NAMES + WIDTH - _RIGHT) / 2
  parts += [_text(middle, height - 8, dots.x_label, anchor="middle"), "</svg>"]
  return "\n".join(part for part in parts if part)


def _legend(groups: Sequence[str]) -> str:
  x, parts = 12, []
  for i, group in enumerate(groups):
    dot = f'<circle class="fill" cx="{x + 5}" cy="38" r="4.5"/>'
    parts.append(
      f'<g class="c{i % line_chart.COLOURS}">{dot}{_text(x + 15, 42, group)}</g>'
    )
    x += 34 + 7.2 * len(group)
  return "\n".join(parts)


def _name(row: DotRow, i: int) -> str:
  y = _TOP + _ROW * (i + 0.5)
  # Every other row is shaded, so that a name leads to its dots.
  band = f'<rect class="stripe" x="0" y="{y - _ROW / 2}" width="{WIDTH}" '
  band += f'height="{_ROW}"/>'
  name = _text(_NAMES - 14, y + 4.5, row.name, anchor="end")
  return (band if i % 2 == 0 else "") + name


def _panel(dots, index, panel, groups, ends, height) -> list[str]:
  left, right = ends
  bottom = height - _BOTTOM
  cells = [row.cells[index] for row in dots.rows]
  shown = [x for c in cells if isinstance(c, Interval) for x in (c.low, c.high)]
  values = [*shown, *panel.lines.values()] or [0.0, 1.0]
  low, high = min(values), max(values)
  margin = 0.05 * (high - low) or 0.5
  low, high = low - margin, high + margin

  def across(value):
    return round(left + (right - left) * (value - low) / (high - low), 2)

  parts = [_text(left, 66, panel.title, "title small")]
  for value in line_chart.ticks(low, high, count=4):
    x = across(value)
    parts += [
      f'<line class="grid" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>',
      _text(x, bottom + 16, f"{value:.6g}", anchor="middle"),
    ]
  for i, (name, value) in enumerate(panel.lines.items()):
    x = across(value)
    above = _TOP - 7 - 13 * (i % 2)  # two heights: neighbours' names do not collide
    parts += [
      f'<line class="line axis dashed" x1="{x}" x2="{x}" y1="{_TOP}" y2="{bottom}"/>',
      _text(min(x, right), above, name, anchor="end" if x > right - 30 else "middle"),
    ]
  for i, (row, cell) in enumerate(zip(dots.rows, cells, strict=True)):
    y = _TOP + _ROW * (i + 0.5)
    colour = groups.index(row.group) % line_chart.COLOURS
    if isinstance(cell, Interval):
      mark = (
        f'<line class="bar stroke" x1="{across(cell.low)}" x2="{across(cell.high)}" '
        f'y1="{y}" y2="{y}"/>'
        f'<circle class="fill" cx="{across(cell.mean)}" cy="{y}" r="4.5"/>'
      )
    else:
      mark = _text(left + 4, y + 4.5, cell, "absent")
    parts.append(f'<g class="c{colour}">{mark}</g>')
  return parts


def _text(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
  return (
    f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
    f"{html.escape(text)}</text>"
  )
