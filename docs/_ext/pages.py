"""Writes the reference's pages: one per objective, one per module of mathematics."""

from pathlib import Path

import equation_numbers

from xpo_jax import objectives
from xpo_jax.survey import table

MODULES = {
  "Records and evaluation": ("types", "scored", "ops.masked", "ops.token_stats"),
  "Configuration": (
    "config.experiment",
    "config.data",
    "config.sampling",
    "config.optim",
    "config.factories",
  ),
  "Training": ("train.loop", "train.stages", "train.state"),
  "Generation and evaluation": (
    "models.generate",
    "evaluation.evaluate_run",
    "evaluation.measure_policy",
    "evaluation.bootstrap",
    "evaluation.frontier",
    "evaluation.optimal_policy",
  ),
  "Mathematics": (
    "ops.links",
    "ops.discopop_losses",
    "ops.divergences",
    "ops.token_mdp",
    "ops.returns",
    "ops.policy_loss",
    "ops.sampler_correction",
    "ops.groups",
    "ops.ranking",
    "ops.preference_games",
    "ops.repetition",
    "ops.attention",
    "ops.capping",
    "ops.experts",
    "ops.head.reductions",
    "ops.head.blocks",
    "ops.head.kernels",
    "ops.tpu.attention",
    "ops.tpu.chip",
  ),
  "Rules around a loss": (
    "ops.selection",
    "ops.pairing",
    "ops.ai_labels",
    "ops.kl_control",
    "models.merge",
  ),
  "To try things on": ("testing.toy", "testing.bandit"),
  "The survey": (
    "survey.taxonomy",
    "survey.table",
    "survey.explain",
    "survey.text_chart",
  ),
}


def write(folder: Path) -> None:
  """Fills `folder` with pages; pages of an earlier run are removed."""
  folder.mkdir(exist_ok=True)
  for stale in folder.glob("*.rst"):
    stale.unlink()
  for name in objectives.NAMES:
    _write(folder / f"{name}.rst", _objective(name))
  listed = "\n".join(f"   {name}" for name in objectives.NAMES)
  _write(
    folder / "objectives.rst",
    _title("Objectives") + f".. toctree::\n   :maxdepth: 1\n\n{listed}\n",
  )
  parts = sorted(set(objectives.HOME) - set(objectives.NAMES))
  blocks = "".join(f".. autofunction:: xpo_jax.objectives.{one}\n\n" for one in parts)
  _write(folder / "building_blocks.rst", _title("Building blocks") + blocks)
  numbers = equation_numbers.page(objectives.NAMES)
  _write(folder / "equation_numbers.rst", _title("Equation numbers") + numbers)
  for title, modules in MODULES.items():
    body = "".join(
      f"{_title(module, '-')}.. automodule:: xpo_jax.{module}\n   :members:\n\n"
      for module in modules
    )
    _write(folder / f"{title.lower().replace(' ', '_')}.rst", _title(title) + body)


def _objective(name: str) -> str:
  places = "".join(
    f"::\n\n{_indent(table.describe(paper))}\n\n" for paper in table.papers_of(name)
  )
  return (
    f"{_title(name)}.. autofunction:: xpo_jax.objectives.{name}\n\n"
    f"{_title('In the survey', '-')}{places}"
  )


def _title(text: str, mark: str = "=") -> str:
  return f"{text}\n{mark * len(text)}\n\n"


def _indent(text: str) -> str:
  return "\n".join(f"   {line}" for line in text.splitlines())


def _write(path: Path, text: str) -> None:
  path.write_text(text, encoding="utf-8")
