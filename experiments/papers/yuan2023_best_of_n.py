"""RRHF: a ranking loss that is as good as RL, and as good as its samples' best."""

import math

import numpy as np

from xpo_jax.studies.atlas.table import (
  ABOVE,
  Arm,
  Prediction,
  Table,
  frontier,
  gap,
  sweep,
)
from xpo_jax.studies.exact import bandits, ranked

LAST = 300.0
SIZES = (2, 4, 8)
SFT = "SFT on the best of 4"


def arm(series, objective, hparams, size):
  """A loss along training on lists of a size."""
  settings = {"objective": objective, "hparams": hparams, "size": size}
  return Arm(series, 0.0, ranked.train, settings)


def name(size):
  """Series of a size."""
  return f"RRHF, lists of {size}"


def share(r):
  """Reward over that of the optimum at RRHF's own KL, `[S]`."""
  found_S = r.metric(name(4), "reward", LAST)
  optimum_S = [
    r.at("optimum", "reward", "root_kl", root)[seed]
    for seed, root in enumerate(r.metric(name(4), "root_kl", LAST))
  ]
  return found_S / np.array(optimum_S)


TABLE = Table(
  paper="RRHF",
  method="rrhf",
  claim="Ranking sampled completions by their log-probability aligns about as well as "
  "RL, and RRHF is a best-of-n learner: it is as good as the best of its samples, and "
  "better with more of them.",
  where="abstract",
  design="Contextual bandit, linear policy, held-out prompts; 300 lists of 2, 4 or 8 "
  "different samples of the reference, scored with noise of half a standard deviation; "
  "300 steps. RL is bounded by the policy of most reward at the same KL.",
  contrary="At its KL RRHF has less than 0.8 of the most reward there is; or is 0.15 "
  "of a standard deviation off the best of its lists of 4; or lists of 8 teach no "
  "more than lists of 2; or it orders completions no better than SFT on the best.",
  departs="All samples are the reference's own; the optimum in place of PPO, which can "
  "only be below it.",
  arms=(
    *(
      arm(name(size), "rrhf", {"weight": 1.0, "length_penalty": 1.0}, size)
      for size in SIZES
    ),
    arm(SFT, "nll", {"reduction": "token_mean"}, 4),
    *sweep(
      "optimum",
      bandits.optimum,
      "kl",
      (0.2, 0.4, 0.6, 0.8, 1.0, 1.4),
    ),
  ),
  predictions=(
    Prediction(
      "RRHF's reward over the optimum's at its KL, lists of 4",
      "ratio",
      share,
      (0.8, math.inf),
    ),
    Prediction(
      "RRHF, reward minus that of the best of its lists of 4",
      "reward",
      lambda r: r.metric(name(4), "reward", LAST) - r.metric(name(4), "data", LAST),
      (-0.15, 0.15),
    ),
    Prediction(
      "lists of 8 minus lists of 2, reward",
      "reward",
      gap("reward", (name(8), LAST), (name(2), LAST)),
      ABOVE,
    ),
    Prediction(
      "RRHF minus SFT on the best of 4, pairs ordered as their rewards",
      "fraction",
      gap("accuracy", (name(4), LAST), (SFT, LAST)),
      ABOVE,
    ),
  ),
  plot=frontier(
    "RRHF follows the optimum closely and stops near the reward of the best of its "
    "lists, further up for longer lists.",
  ),
  paper_scale="Not run: LLaMA and Alpaca 7B on HH, 4 to 5 completions a prompt; weight "
  "1, lr 2e-5, 3 epochs.",
)
