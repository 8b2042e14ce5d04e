"""RLHF: reward grows with the root of KL along training."""

import numpy as np

from xpo_jax.studies.atlas.table import ABOVE, Arm, Plot, Prediction, Results, Table
from xpo_jax.studies.exact import online

UP_TO = 1.0  # nats


def fitted(r: Results) -> tuple[np.ndarray, np.ndarray]:
  """Slope of reward over root KL, and the share of variance that a line explains,
  from the reference to 1 nat; one a seed."""
  at = r.strengths("RLOO")
  x_TS, y_TS = (
    np.stack([r.metric("RLOO", name, step) for step in at])
    for name in ("root_kl", "reward")
  )
  slopes, explained = [], []
  for x_T, y_T in zip(x_TS.T, y_TS.T, strict=True):
    inside = x_T <= UP_TO**0.5
    x_T, y_T = (np.append(0.0, values[inside]) for values in (x_T, y_T))
    slopes.append(np.polyfit(x_T, y_T, 1)[0])
    explained.append(np.corrcoef(x_T, y_T)[0, 1] ** 2)
  return np.array(slopes), np.array(explained)


TABLE = Table(
  paper="RLHF (Anthropic)",
  method="rlhf",
  claim="Over most of training the reward gained is a linear function of the root of "
  "the KL to the first policy.",
  where="the study of reward against the root of KL",
  design="RLOO on the tabular bandit, 16 prompts of 12 completions with Gaussian "
  "rewards, the cells of ahmadian2024_noise; a line through reward over root KL, from "
  "the reference to 1 nat. 10 seeds.",
  contrary="The line explains less than 95 % of the variance, or does not rise.",
  departs="True reward, no reward model; the test of over-optimisation is a table of "
  "language models.",
  arms=(
    Arm(
      "RLOO",
      0.0,
      online.train,
      {"objective": "rloo", "hparams": {"beta": None}, "noise": 0.0},
    ),
  ),
  predictions=(
    Prediction(
      "variance of reward that a line over root KL explains",
      "fraction",
      lambda r: fitted(r)[1],
      (0.95, 1.001),
    ),
    Prediction("slope of the line", "reward a root nat", lambda r: fitted(r)[0], ABOVE),
  ),
  plot=Plot(
    "root_kl",
    "reward",
    "root of KL to the reference, root nats",
    "expected reward above the reference's",
    "A straight line from the reference, which bends where rewards run out.",
  ),
  paper_scale="52B policies and preference models on helpful and harmless dialogue, "
  "KL coefficient 0.001.",
)
