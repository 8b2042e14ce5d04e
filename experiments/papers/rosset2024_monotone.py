"""DNO: every round better than the one before, and than a strong teacher."""

import numpy as np

from xpo_jax.studies.atlas.table import ABOVE, Arm, Plot, Prediction, Table, metric
from xpo_jax.studies.exact import selfplay

ROUNDS, BETA = 6, 0.2


def arm(series, objective, beta):
  """A loss in rounds of self-play on cyclic preferences."""
  settings = {
    "objective": objective,
    "hparams": {"beta": beta},
    "count": ROUNDS,
    "steps": 1000,
  }
  return Arm(series, 0.0, selfplay.rounds, settings)


def path(r, name):
  """A metric of DNO after every round, `[R, S]`."""
  return np.stack([r.metric("DNO", name, t) for t in r.strengths("DNO")])


TABLE = Table(
  paper="DNO",
  method="dno",
  claim="Regressing margins on win rates of the policy's own samples improves it in "
  "every round, also against a fixed strong opponent, until it is better than a "
  "teacher stronger than where it began.",
  where="abstract",
  design="Random win matrices of 12 completions, with cycles; 6 rounds of DNO with "
  "beta 0.2, each minimising the expected loss over all pairs of the current policy, "
  "its reference; the teacher is the first policy tilted by 10 nats a unit of win "
  "rate; SPPO beside it.",
  contrary="A round's policy does not beat the one before; or is 0.02 of total "
  "variation from the exact step; or some round loses against the teacher; or the last "
  "policy does not beat the teacher.",
  departs="The exact form, not DNO-Prct, whose pairs are the teacher's completions and "
  "clear wins; expected losses in place of samples.",
  arms=(arm("DNO", "dno", BETA), arm("SPPO", "sppo", BETA)),
  predictions=(
    Prediction(
      "smallest win rate of a round against the one before",
      "win probability above 1/2",
      lambda r: path(r, "gain").min(0),
      ABOVE,
    ),
    Prediction(
      "largest distance of a round from the exact step",
      "total variation",
      lambda r: path(r, "error").max(0),
      (-1e-3, 0.02),
    ),
    Prediction(
      "smallest gain of a round against the teacher",
      "win probability",
      lambda r: np.diff(path(r, "teacher"), axis=0).min(0),
      ABOVE,
    ),
    Prediction(
      "the last policy against the teacher",
      "win probability above 1/2",
      metric("teacher", ("DNO", float(ROUNDS))),
      ABOVE,
    ),
  ),
  plot=Plot(
    None,
    "teacher",
    "rounds",
    "win probability against the teacher above 1/2",
    "The policy begins below the teacher and is above it from the second round on, but "
    "its lead is smaller after the sixth round than after the fifth.",
  ),
  paper_scale="Not run: Orca-2.5 7B on UltraFeedback, 5 samples a prompt and GPT-4 "
  "Turbo's own, ranked by GPT-4 Turbo.",
)
