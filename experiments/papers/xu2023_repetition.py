"""Pairwise CRINGE: a habit of repeating, unlearnt in rounds."""

import math

from xpo_jax.studies.atlas.table import (
  BELOW,
  KL,
  Arm,
  Plot,
  Prediction,
  Table,
  gap,
  gap_at,
  ratio,
)
from xpo_jax.studies.exact import repetition

COUNT, STEPS = 200, 150
LAST = 2.0 * STEPS
LEVEL = 0.2  # of repetition, at which costs are compared


def arm(series, objective, hparams, rounds=2):
  """A method with as many pairs and updates, in two rounds or in one."""
  settings = {
    "objective": objective,
    "hparams": hparams,
    "rounds": rounds,
    "count": 2 * COUNT // rounds,
    "steps": 2 * STEPS // rounds,
  }
  return Arm(series, 0.0, repetition.iterate, settings)


PAIRWISE = {"alpha": 1.0, "margin": 0.0, "temperature": 1.0}
OWN, ONCE = "Pairwise CRINGE", "Pairwise CRINGE, one round"
BINARY, DPO = "binary CRINGE", "iterative DPO"
TABLE = Table(
  paper="CRINGE",
  method="pairwise_cringe",
  claim="Pairwise CRINGE, in rounds of the policy's own completions, removes a habit "
  "of repeating, and costs the policy less than binary CRINGE or DPO do.",
  where="the repetition task, and the abstract",
  design="Trees of completions of 1 to 5 tokens; a reference that repeats the token "
  "before; 400 pairs of the policy, the one with fewer repeats preferred, in two "
  "rounds of 150 steps, or one of 300; KL to the reference at a repetition of 0.2.",
  contrary="More than half of the repetition is left; or two rounds leave no less than "
  "one with as many pairs and steps; or at equal repetition binary CRINGE or iterative "
  "DPO has moved the policy no further.",
  departs="KL to the reference in place of F1 to human text; completions of 5 tokens, "
  "of which the share of repeats is that of single tokens, not of 3-grams; alpha 1, "
  "margin 0 and temperature 1, since the paper's values were not found.",
  arms=(
    arm(OWN, "pairwise_cringe", PAIRWISE),
    arm(ONCE, "pairwise_cringe", PAIRWISE, 1),
    arm(BINARY, "cringe", {"alpha": 1.0}),
    arm(DPO, "dpo", {"beta": 0.1}),
  ),
  predictions=(
    Prediction(
      "Pairwise CRINGE, repetition at the end over that after 2 steps",
      "ratio",
      ratio("repetition", (OWN, LAST), (OWN, 2.0)),
      (-math.inf, 0.5),
    ),
    Prediction(
      "two rounds minus one, repetition at the end",
      "fraction of tokens",
      gap("repetition", (OWN, LAST), (ONCE, LAST)),
      BELOW,
    ),
    Prediction(
      f"pairwise minus binary CRINGE, KL at a repetition of {LEVEL}",
      "nats",
      gap_at("kl", "repetition", LEVEL, OWN, BINARY),
      BELOW,
    ),
    Prediction(
      f"Pairwise CRINGE minus iterative DPO, KL at a repetition of {LEVEL}",
      "nats",
      gap_at("kl", "repetition", LEVEL, OWN, DPO),
      BELOW,
    ),
  ),
  plot=Plot(
    "repetition",
    "kl",
    "expected share of tokens that repeat the one before",
    KL,
    "From right to left repetition falls: binary CRINGE moves the policy least, "
    "Pairwise CRINGE most; the bend in each curve is the second round's fresh pairs.",
  ),
  paper_scale="Not run: GPT-2 medium on the repetition task, LLaMA 7B on AlpacaFarm; "
  "margin, temperature and alpha are set per task, their values were not found.",
  revised="A first run compared at a repetition of 0.1, which binary CRINGE does not "
  "reach in 3 seeds.",
)
