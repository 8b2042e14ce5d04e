"""One objective as a page of text: what `xpo explain` prints."""

import textwrap
from collections.abc import Sequence

import numpy as np

from xpo_jax import objectives
from xpo_jax.survey import table, text_chart
from xpo_jax.testing import toy
from xpo_jax.types import Objective

_GAP = np.linspace(-20, 20, 65)


def page(name: str, recipes: Sequence[str] = ()) -> str:
  """Equation, source, hyperparameters, needs, place in the survey, loss and gradient
  drawn.

  Args:
    name: of the objective.
    recipes: names of recipes that use it, to be listed.

  Raises:
    ValueError: no such objective; says which one was likely meant.
  """
  text = objectives.docstring(name)
  objective = objectives.build(name)
  hparams = ", ".join(f"{k}={_show(v)}" for k, v in objective.hparams.items())
  parts = [f"{name}({hparams})", text.rstrip(), _reads(objective)]
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
  return "\n\n".join([*parts, *_drawn(objective)])


def _show(value: object) -> str:
  """A hyperparameter's value; a link or a divergence by its name."""
  return value.name if isinstance(value, tuple) else repr(value)


def _reads(objective: Objective) -> str:
  stats = ", ".join(sorted(stat.field for stat in objective.stats))
  line = f"layout: {objective.layout.name}   scores: {stats or 'nothing'}"
  columns = ", ".join(sorted(objective.columns))
  return f"{line}   data columns: {columns}" if columns else line


def _drawn(objective: Objective) -> list[str]:
  """Charts of loss and slope; one more for an answer with thumbs down."""
  kinds = {"": True}
  if "desirable_BK" in objective.columns:
    kinds = {"desirable answer: ": True, "undesirable answer: ": False}
  charts = []
  for kind, desirable in kinds.items():
    found = toy.curve(objective, _GAP, desirable=desirable)
    for what, y in (("loss", found.loss), ("gradient", found.slope)):
      drawn = text_chart.chart(_GAP, y, height=9, label="nats")
      title = f"{kind}{what} as the first completion rises by that many nats"
      charts.append(textwrap.indent(f"{title}\n{drawn}", "  "))
  return charts
