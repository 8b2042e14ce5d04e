"""SPPO: rounds of self-play whose average approaches the equilibrium."""

import math

import numpy as np

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Arm,
  Plot,
  Prediction,
  Table,
  metric,
)
from xpo_jax.studies.exact import selfplay

LAST = 100.0
BETAS = (2.0, 0.5)  # 1 / eta
DPO_BETAS = (2.0, 8.0)


def arm(series, objective, beta):
  """A loss in rounds of self-play on cyclic preferences."""
  settings = {
    "objective": objective,
    "hparams": {"beta": beta},
    "count": int(LAST),
    "steps": 150,
  }
  return Arm(series, 0.0, selfplay.rounds, settings)


def sppo(beta):
  """Name of a series."""
  return f"SPPO, eta {1 / beta:g}"


def dpo(beta):
  """Name of a series."""
  return f"iterative DPO, beta {beta:g}"


def best(r, names):
  """The lowest exploitability of the averages, of each seed, `[S]`."""
  return np.min([r.metric(name, "exploitability", LAST) for name in names], 0)


TABLE = Table(
  paper="SPPO",
  method="sppo",
  claim="Self-play that regresses log-ratios on win rates approaches the Nash "
  "equilibrium of a preference that no reward explains, and does better than iterative "
  "DPO there.",
  where="abstract, and the convergence theorem",
  design="Random win matrices of 12 completions, with cycles; 100 rounds, each "
  "minimising the expected loss over all pairs of the current policy, its reference; "
  "SPPO with eta 0.5 and 2, iterative DPO on pairs labelled by the same matrix with "
  "beta 2 and 8; exploitability of the average of the rounds' policies.",
  contrary="With eta 0.5 the average is exploitable by 0.05 or more; or the last "
  "policy does not beat the first; or the average of iterative DPO is no more "
  "exploitable, each at its better setting.",
  departs="Expected losses in place of pairs of samples; the theorem is about the "
  "average of the rounds, the paper's models are the last one.",
  arms=(
    *(arm(sppo(b), "sppo", b) for b in BETAS),
    *(arm(dpo(b), "dpo", b) for b in DPO_BETAS),
  ),
  predictions=(
    Prediction(
      "SPPO with eta 0.5, exploitability of the average after 100 rounds",
      "win probability",
      metric("exploitability", (sppo(BETAS[0]), LAST)),
      (-math.inf, 0.05),
    ),
    Prediction(
      "last policy of SPPO with eta 0.5 against the first",
      "win probability above 1/2",
      metric("wins", (sppo(BETAS[0]), LAST)),
      ABOVE,
    ),
    Prediction(
      "SPPO minus iterative DPO, exploitability of the average, better settings",
      "win probability",
      lambda r: best(r, map(sppo, BETAS)) - best(r, map(dpo, DPO_BETAS)),
      BELOW,
    ),
  ),
  plot=Plot(
    None,
    "exploitability",
    "rounds",
    "exploitability of the average, win probability above 1/2",
    "SPPO with eta 0.5 and DPO with beta 8 fall alike, and so do the two larger steps, "
    "which are near 0.03 after 100 rounds.",
    log_x=True,
  ),
  paper_scale="Not run: Mistral 7B, Llama-3 8B and Gemma-2 9B, PairRM, 5 samples a "
  "prompt, eta 1000, lr 5e-7, 3 rounds.",
  revised="A first run had eta 0.5 alone beside both betas of DPO, and was more "
  "exploitable than DPO.",
)
