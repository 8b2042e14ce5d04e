"""Arms, predictions and figures that the tables of several papers share."""

from collections.abc import Sequence
from typing import Any

from xpo_jax.studies.atlas import table
from xpo_jax.studies.atlas.table import Arm, Plot, Prediction
from xpo_jax.studies.exact import bandits, gradients

RUNNING_MEAN = "REINFORCE, running mean"
OFFSETS = (0.0, 1.0, 3.0, 10.0)
BETA = 0.3  # at which changes of log-probabilities are compared


def over_beta(
  series: str, objective: str, betas: Sequence[float], **settings: Any
) -> tuple[Arm, ...]:
  """An objective on labelled pairs over its betas.

  Args:
    series: see `Arm`.
    objective: see `bandits.pairs`.
    betas: values of the hyperparameter.
    **settings: others of `bandits.pairs`.
  """
  return table.sweep(
    series, bandits.pairs, "hparams.beta", betas, objective=objective, **settings
  )


def estimators(
  series: str, objective: str, over: str, values: Sequence[float], **settings: Any
) -> tuple[Arm, ...]:
  """A policy gradient without a tie to the reference over a setting.

  Args:
    series: see `Arm`.
    objective: see `gradients.estimator`.
    over: a setting of `gradients.estimator`, and
    values: its values.
    **settings: others of it.
  """
  return table.sweep(
    series,
    gradients.estimator,
    over,
    values,
    objective=objective,
    hparams={"beta": None},
    **settings,
  )


def baseline(series: str) -> tuple[Prediction, ...]:
  """What a baseline of the prompt's own is for: less variance than a running mean where
  prompts differ in difficulty, not where they do not; and no bias."""
  against_mean = tuple(
    Prediction(
      f"variance of {series} over that of {RUNNING_MEAN}, offset {offset:g}",
      "ratio",
      table.ratio("variance", (series, offset), (RUNNING_MEAN, offset)),
      expected,
    )
    for offset, expected in ((3.0, table.BELOW_1), (0.0, table.ABOVE_1))
  )
  return (
    *against_mean,
    Prediction(
      f"{series}, mean gradient along the exact one, offset 3",
      "of its norm",
      table.metric("along", (series, 3.0)),
      (0.95, 1.05),
    ),
    Prediction(
      f"{series}, squared bias less chance, offset 3",
      "of the squared norm",
      table.metric("bias", (series, 3.0)),
      (-0.01, 0.01),
    ),
  )


VARIANCES = Plot(
  None,
  "variance",
  "standard deviation of the prompts' mean rewards",
  "gradient variance over squared norm",
  "The running mean's variance grows with the spread of the prompts' difficulty; that "
  "of a baseline of the prompt's own does not, but is larger where prompts are alike.",
)


def change(series: str, side: str, expected: tuple[float, float]) -> Prediction:
  """Mean change of the log-probability of the pairs' completions at `BETA`.

  Args:
    series: of `over_beta`.
    side: "chosen" or "rejected".
    expected: range.
  """
  return Prediction(
    f"{series}, change of the {side} completions' log-probability, beta {BETA}",
    "nats",
    table.metric(side, (series, BETA)),
    expected,
  )


def changes(see: str) -> Plot:
  """Change of the chosen completions over beta."""
  return Plot(None, "chosen", "beta", "change of log p(chosen), nats", see, log_x=True)
