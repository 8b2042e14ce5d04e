"""Writes a table's results: finding.json, table.md, table.tex, figure.svg.

`finding.json` holds what the other files and the documentation show: nothing there is
written by hand. All are pure functions of the table and of its cells' lines.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from xpo_jax.data import sealed_files
from xpo_jax.evaluation.bootstrap import Interval
from xpo_jax.report import html, line_chart
from xpo_jax.studies.atlas import cells, worlds
from xpo_jax.studies.atlas import table as tables
from xpo_jax.studies.atlas.table import Outcome, Plot, Results, Table
from xpo_jax.survey import table as survey_table

Line = cells.Line
FINDING, MARKDOWN, LATEX, FIGURE = (
  "finding.json",
  "table.md",
  "table.tex",
  "figure.svg",
)


def write(folder: Path, table: Table, lines: Sequence[Line]) -> dict[str, Any]:
  """Writes all four files; returns the finding.

  Args:
    folder: of the table, named after it.
    table: the claim.
    lines: a line for each of its cells, and any others.

  Raises:
    ValueError: a cell has no line.
  """
  texts = files(folder.name, table, lines)
  folder.mkdir(parents=True, exist_ok=True)
  for file, text in texts.items():
    sealed_files.write_text(folder / file, text)
  return finding(folder.name, table, lines)


def files(name: str, table: Table, lines: Sequence[Line]) -> dict[str, str]:
  """The text of all four files, by name; `write` has the arguments and errors."""
  found = finding(name, table, lines)
  results = cells.results(table, lines)
  return {
    MARKDOWN: html.markdown(_page(found, arms_table(table, results))),
    LATEX: latex(found),
    FIGURE: line_chart.svg(figure(table, results), standalone=True) + "\n",
    FINDING: json.dumps(found, indent=1, allow_nan=False) + "\n",
  }


def read(folder: Path) -> dict[str, Any] | None:
  """A table's finding; None where it has none."""
  path = folder / FINDING
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def finding(name: str, table: Table, lines: Sequence[Line]) -> dict[str, Any]:
  """Everything that is shown of a table, as plain data; see `write`."""
  outcomes = tables.judge(table, cells.results(table, lines))
  row = table.row
  own = [line for arm in cells.of_table(table, lines) for line in arm]
  unique = {line["digest"]: line for line in own}.values()
  # An exact table's finding names no world: those are most, and were first.
  world = {} if table.world == worlds.EXACT else {"world": table.world}
  return world | {
    "table": name,
    "method": table.method,
    "paper": table.paper,
    "arxiv": row.arxiv,
    "section": row.section,
    "directions": survey_table.abbreviated(row),
    "claim": table.claim,
    "where": table.where,
    "design": table.design,
    "contrary": table.contrary,
    "departs": table.departs,
    "revised": table.revised,
    "paper_scale": table.paper_scale,
    "predictions": [_plain(outcome) for outcome in outcomes],
    "verdict": tables.verdict(outcomes).value,
    "see": table.plot.see,
    "figure": table.plot.y_label,
    "command": f"xpo reproduce {name}{worlds.FLAGS[table.world]}",
    "cells": len(unique),
    "seeds": table.seeds,
    "seconds": round(sum(line["seconds"] for line in unique), 1),
    "commits": sorted({line["commit"] or "none" for line in unique}),
    "hardware": sorted({line["hardware"] for line in unique}),
    "not_finite": cells.not_finite(table, own),
  }


def figure(table: Table, results: Results) -> line_chart.Figure:
  """The table's figure: means over the seeds with 95 % intervals.

  An arm in which a seed has no finite number has no point; its page says so.
  """
  plot = table.plot
  series = []
  for name in dict.fromkeys(arm.series for arm in table.arms):
    strengths = results.strengths(name)
    y = [_mean(results.metric(name, plot.y, at)) for at in strengths]
    x = [_across(results, plot, name, at) for at in strengths]
    order = np.argsort([one.mean for one in x])
    x, y = ([column[i] for i in order] for column in (x, y))
    series.append(
      line_chart.Series(
        name,
        [one.mean for one in x],
        [one.mean for one in y],
        [one.low for one in y],
        [one.high for one in y],
        [one.low for one in x],
        [one.high for one in x],
        kind="both" if len(x) > 1 else "points",
      )
    )
  title = f"{table.paper}: {plot.y_label}"
  x_label = f"log10 of {plot.x_label}" if plot.log_x else plot.x_label
  return line_chart.Figure(title, x_label, plot.y_label, series, note=plot.see)


def arms_table(table: Table, results: Results) -> html.Table:
  """Every arm with the metrics of the figure."""
  plot = table.plot
  rows = []
  for series, strength in results.arms():
    measures = [plot.y] if plot.x is None else [plot.x, plot.y]
    means = [_mean(results.metric(series, name, strength)) for name in measures]
    shown = [str(x) if math.isfinite(x.mean) else "not finite" for x in means]
    rows.append([series, float(strength), *shown])
  measured = ([plot.x_label] if plot.x is not None else []) + [plot.y_label]
  strength = "strength" if plot.x is not None else plot.x_label
  caption = f"Mean [95 %] over {_units(table, results)}. {plot.see}"
  return html.Table(["arm", strength, *measured], rows, caption)


def _units(table: Table, results: Results) -> str:
  """What the intervals are over."""
  seeds = html.counted(table.seeds, "seed")
  series, strength = results.arms()[0]
  x = results.metric(series, table.plot.y, strength)
  return seeds if x.ndim == 1 else f"{x.shape[1]} held-out prompts and {seeds}"


def cost(found: Mapping[str, Any]) -> str:
  """What a finding took: cells, seconds, seeds."""
  seeds = html.counted(found["seeds"], "seed")
  return f"{found['cells']} cells, {found['seconds']:g} s, {seeds}"


def latex(found: Mapping[str, Any]) -> str:
  """The predictions as a LaTeX table (packages booktabs and tabularx)."""
  lines = [
    f"% {found['command']}; commits {', '.join(found['commits'])}",
    r"\begin{tabularx}{\linewidth}{Xlll}",
    r"\toprule",
    r"prediction & expected & found [95\,\%] & verdict \\",
    r"\midrule",
  ]
  for one in found["predictions"]:
    cells = [one["text"], expected(one), value(one), one["verdict"]]
    lines.append(" & ".join(map(_escaped, cells)) + r" \\")
  return "\n".join([*lines, r"\bottomrule", r"\end{tabularx}", ""])


def expected(prediction: Mapping[str, Any]) -> str:
  """The range of a prediction in words."""
  low, high, unit = prediction["above"], prediction["below"], prediction["unit"]
  if high is None:
    return f"above {low:g} {unit}"
  if low is None:
    return f"below {high:g} {unit}"
  return f"{low:g} to {high:g} {unit}"


def value(prediction: Mapping[str, Any]) -> str:
  """What came out of a prediction, with its interval."""
  if prediction["mean"] is None:
    return prediction["because"]
  mean, low, high = (_digits(prediction[key]) for key in ("mean", "low", "high"))
  return f"{mean} [{low}, {high}] {prediction['unit']}"


def _page(found: Mapping[str, Any], arms: html.Table) -> html.Page:
  predictions = html.Table(
    ["prediction", "expected", "found [95 %]", "verdict"],
    [
      [one["text"], expected(one), value(one), one["verdict"]]
      for one in found["predictions"]
    ],
  )
  facts = [
    ["paper", f"{found['paper']}, arXiv:{found['arxiv']}, {found['where']}"],
    ["design", found["design"]],
    ["contrary would be", found["contrary"]],
    ["departs from the paper", found["departs"]],
    ["changed after a first look", found["revised"] or "nothing"],
    ["command", f"`{found['command']}`"],
    ["cost", cost(found)],
    ["at paper scale", found["paper_scale"]],
    ["commit", ", ".join(found["commits"])],
  ]
  sections = [
    html.Section("Predictions", [predictions]),
    html.Section("Arms", [arms]),
    html.Section("How", [html.Table([], facts)]),
  ]
  if found["not_finite"]:
    gaps = "\n\n".join(found["not_finite"])
    sections.insert(2, html.Section("Not finite", [html.Text(gaps)]))
  lead = f"{found['claim']}\n\n**{found['verdict']}**"
  return html.Page(found["table"], lead, sections)


def ends(expected: tuple[float, float], unit: str) -> dict[str, Any]:
  """A range as `expected` reads it; an end that is not finite is None."""
  low, high = (end if math.isfinite(end) else None for end in expected)
  return {"unit": unit, "above": low, "below": high}


def _plain(outcome: Outcome) -> dict[str, Any]:
  found = dict.fromkeys(("mean", "low", "high"))
  if outcome.interval is not None:
    found = {key: _rounded(getattr(outcome.interval, key)) for key in found}
  return {
    "text": outcome.text,
    **ends(outcome.range, outcome.unit),
    **found,
    "verdict": outcome.verdict.value,
    "because": outcome.because,
  }


def _across(results: Results, plot: Plot, series: str, strength: float) -> Interval:
  """An arm's place on the horizontal axis."""
  if plot.x is None:
    at = math.log10(strength) if plot.log_x else strength
    return Interval(at, at, at, 0.0, 0)
  x_S = results.metric(series, plot.x, strength)
  return _mean(np.log10(x_S) if plot.log_x else x_S)


def _mean(x: np.ndarray) -> Interval:
  """Mean and interval (`table.interval`); NaN where a seed has no finite number."""
  if not np.isfinite(x).all():
    return Interval(math.nan, math.nan, math.nan, math.nan, x.size)
  return tables.interval(x)


def _rounded(x: float) -> float:
  return float(f"{x:.6g}")


def _digits(x: float) -> str:
  return f"{x:.3f}" if 0.01 <= abs(x) < 1000 or x == 0 else f"{x:.3g}"


def _escaped(text: str) -> str:
  for mark in ("\\", "&", "%", "_", "#", "$", "^", "~"):
    text = text.replace(mark, r"\textbackslash{}" if mark == "\\" else f"\\{mark}")
  return text.replace(r"\^", r"\textasciicircum{}").replace(r"\~", r"\textasciitilde{}")
