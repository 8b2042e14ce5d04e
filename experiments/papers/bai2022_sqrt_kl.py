"""RLHF: reward grows with the root of KL along training."""

import math

import numpy as np

from xpo_jax.studies.atlas.table import (
  ABOVE,
  REWARD,
  Arm,
  Plot,
  Prediction,
  Results,
  Table,
)
from xpo_jax.studies.exact import online

UP_TO = 1.0  # nats


def paths(r: Results) -> list[tuple[np.ndarray, np.ndarray]]:
  """Root KL and reward along training up to 1 nat, of each seed."""
  at = r.strengths("RLOO")
  x_TS, y_TS = (
    np.stack([r.metric("RLOO", name, step) for step in at])
    for name in ("root_kl", "reward")
  )
  inside_TS = x_TS <= UP_TO**0.5
  return [
    (x_T[inside_T], y_T[inside_T])
    for x_T, y_T, inside_T in zip(x_TS.T, y_TS.T, inside_TS.T, strict=True)
  ]


def explained(r: Results) -> np.ndarray:
  """The share of variance that a line of reward over root KL explains, one a seed."""
  return np.array(
    [np.corrcoef(np.r_[0, x], np.r_[0, y])[0, 1] ** 2 for x, y in paths(r)]
  )


def slope(r: Results) -> np.ndarray:
  """Slope of that line, one a seed."""
  return np.array([np.polyfit(np.r_[0, x], np.r_[0, y], 1)[0] for x, y in paths(r)])


def exponent(r: Results) -> np.ndarray:
  """Slope of log reward over log KL, one a seed."""
  return np.array([np.polyfit(2 * np.log(x), np.log(y), 1)[0] for x, y in paths(r)])


TABLE = Table(
  paper="RLHF (Anthropic)",
  method="rlhf",
  claim="Over most of training the reward gained is a linear function of the root of "
  "the KL to the first policy.",
  where="the study of reward against the root of KL",
  design="RLOO on the tabular bandit, 16 prompts of 12 completions with Gaussian "
  "rewards, the cells of ahmadian2024_noise; a line through reward over root KL from "
  "the reference to 1 nat, and the exponent of KL, a line through their logs.",
  contrary="The exponent of KL outside 0.45 to 0.55; or the line explains less than 95 "
  "% of the variance, or does not rise.",
  departs="RLOO in place of PPO; true reward, no reward model; the test of "
  "over-optimisation is a table of language models.",
  arms=(
    Arm(
      "RLOO",
      0.0,
      online.train,
      {"objective": "rloo", "hparams": {"beta": None}, "noise": 0.0},
    ),
  ),
  predictions=(
    Prediction("exponent of KL", "power of KL", exponent, (0.45, 0.55)),
    Prediction(
      "variance of reward that a line over root KL explains",
      "fraction",
      explained,
      (0.95, math.inf),
    ),
    Prediction("slope of the line", "reward a root nat", slope, ABOVE),
  ),
  plot=Plot(
    "root_kl",
    "reward",
    "root of KL to the reference, root nats",
    REWARD,
    "A straight line from the reference, which bends where rewards run out.",
  ),
  paper_scale="Not run: 52B policies and preference models on helpful and harmless "
  "dialogue, KL coefficient 0.001.",
  revised="The exponent was added after a first look: a line explains 99.9 % of the "
  "variance, and would explain most of it for other exponents too.",
)
