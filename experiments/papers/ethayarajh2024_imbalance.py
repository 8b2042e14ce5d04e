"""KTO: few thumbs up, weighted."""

import math

from xpo_jax.studies.atlas.table import (
  BELOW,
  REWARD,
  Plot,
  Prediction,
  Table,
  gap,
  sweep,
)
from xpo_jax.studies.exact import labels

# The paper's rule, the weight of all desirable completions over that of all undesirable
# ones 1 to 4 / 3, is with a tenth of the desirable ones a weight of 10 to 13.33.
WEIGHTS = (1.0, 3.0, 10.0, 13.33)


def arms(series, kept, weights):
  """KTO over the weight of desirable completions."""
  return sweep(
    series,
    labels.thumbs,
    "hparams.desirable_weight",
    weights,
    objective="kto",
    hparams={"beta": 0.3, "undesirable_weight": 1.0},
    kept=kept,
  )


TABLE = Table(
  paper="KTO",
  method="kto",
  claim="With 90 % fewer desirable completions KTO is as good, if their weight makes "
  "up for their number, by a factor of 1 to 4/3; without the weight it is not.",
  where="the study of imbalanced data",
  design="Tabular bandit, 16 prompts of 12 completions, 2,000 uniform completions with "
  "thumbs that follow reward; all, or a tenth of those with a thumb up, weighted 1, 3, "
  "10 or 13.33.",
  contrary="A tenth, weighted 10 or 13.33, has less reward than all by 0.2; or weight "
  "1 has no less reward than weight 10.",
  departs="Reward is exact; beta 0.3 and steps are equal in all arms.",
  arms=(*arms("all", 1.0, (1.0,)), *arms("a tenth", 0.1, WEIGHTS)),
  predictions=(
    *(
      Prediction(
        f"a tenth, weight {weight:g}, minus all: reward",
        "reward",
        gap("reward", ("a tenth", weight), ("all", None)),
        (-0.2, math.inf),
      )
      for weight in WEIGHTS[-2:]
    ),
    Prediction(
      "a tenth, weight 1 minus weight 10: reward",
      "reward",
      gap("reward", ("a tenth", 1.0), ("a tenth", 10.0)),
      BELOW,
    ),
  ),
  plot=Plot(
    None,
    "reward",
    "weight of a desirable completion",
    REWARD,
    "A tenth of the desirable completions has about 0.2 less reward than all of them, "
    "whatever its weight.",
    log_x=True,
  ),
  paper_scale="Not run: Llama 7B on Anthropic HH, OpenAssistant and SHP; beta 0.1.",
  revised="After a first look a linear policy on held-out prompts became a tabular one "
  "and the caption no longer said that weight restores reward; the upper end of the "
  "paper's rule, 13.33, was added later.",
)
