"""Renders an objective as a page of text, as printed by `xpo explain`."""

import textwrap
from collections.abc import Sequence

import numpy as np

from xpo_jax import objectives
from xpo_jax.survey import table, text_chart
from xpo_jax.testing import toy
from xpo_jax.types import Objective

_GAP = np.linspace(-20, 20, 65)


def page(name: str, recipes: Sequence[str] = ()) -> str:
  """Renders equation, source, hyperparameters, inputs, survey row, loss and gradient.

  Args:
    name: name of the objective.
    recipes: names of the recipes that use it.

  Raises:
    ValueError: no such objective; suggests the closest name.
  """
  text = objectives.docstring(name)
  objective = objectives.build(name)
  hparams = ", ".join(f"{k}={_format(v)}" for k, v in objective.hparams.items())
  parts = [f"{name}({hparams})", text.rstrip(), _inputs(objective)]
  papers = table.papers_of(name)
  parts += [table.describe(paper) for paper in papers if not paper.recipe]
  parts += [
    f"part of {paper.name} (survey {paper.section}): {paper.recipe}"
    for paper in papers
    if paper.recipe
  ]
  parts.append(
    f"recipes that use it: {', '.join(recipes) or 'none'}; any other: "
    f"xpo train RECIPE --objective {name}"
  )
  return "\n\n".join([*parts, *_charts(objective)])


def _format(value: object) -> str:
  """Formats the value of a hyperparameter; a link or a divergence by its name."""
  return value.name if hasattr(value, "name") else repr(value)


def _inputs(objective: Objective) -> str:
  stats = ", ".join(sorted(stat.field for stat in objective.stats))
  line = f"layout: {objective.layout.name}   scores: {stats or 'nothing'}"
  columns = ", ".join(sorted(objective.columns))
  return f"{line}   data columns: {columns}" if columns else line


def _charts(objective: Objective) -> list[str]:
  """Plots loss and gradient; for both labels where the objective reads one."""
  kinds = {"": True}
  if "desirable_BK" in objective.columns:
    kinds = {"desirable completion: ": True, "undesirable completion: ": False}
  charts = []
  for kind, desirable in kinds.items():
    curve = toy.curve(objective, _GAP, desirable=desirable)
    for quantity, y in (("loss", curve.loss), ("gradient", curve.slope)):
      chart = text_chart.chart(_GAP, y, height=9, label="nats")
      title = f"{kind}{quantity} as the first completion rises by that many nats"
      charts.append(textwrap.indent(f"{title}\n{chart}", "  "))
  return charts
