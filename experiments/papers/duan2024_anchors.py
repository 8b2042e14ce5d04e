"""D2O: harmful completions alone, with the policy's own samples as anchors."""

import math

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Arm,
  Plot,
  Prediction,
  Table,
  gap,
  gap_at,
  ratio,
)
from xpo_jax.studies.exact import negatives

LAST, FIRST = 300.0, 2.0
HARM = 0.1
OWN, ONE, ASCENT = "D2O", "one positive (DPO)", "gradient ascent"
BETA = {"beta": 1.0, "alpha": 1.0}  # for gaps of single nats


def arm(series, objective, hparams, **own):
  """A loss along training on the same harmful completions."""
  settings = {"objective": objective, "hparams": hparams, **own}
  return Arm(series, 0.0, negatives.avoid, settings)


TABLE = Table(
  paper="Negating Negatives (D2O)",
  method="d2o",
  claim="Harmful completions alone suffice: with the policy's own samples as anchors "
  "D2O lowers harm and avoids the collapse of pushing them down; many anchors do "
  "better than one positive a pair.",
  where="abstract",
  design="Contextual bandit, linear policy, held-out prompts, of whose 12 completions "
  "3 are harmful, along a hidden direction; 100 harmful samples of the reference; D2O "
  "with 11 samples of the reference, or with 1 (then DPO on a positive that may "
  "itself be harmful), NPO and gradient ascent, along 300 steps; KL given a benign "
  "completion at a harm of 0.1 and at the end.",
  contrary="D2O's harm stays above half of the reference's; or it moves benign "
  "completions no less than gradient ascent, at equal harm or at the end; or no less "
  "than with one positive, at equal harm.",
  departs="Form and settings of D2O are a third party's; anchors are the first "
  "policy's, not renewed; one reference for both terms.",
  arms=(
    arm(OWN, "d2o", BETA),
    arm(ONE, "d2o", BETA, samples=1),
    arm("NPO", "npo", {"beta": 1.0}),
    arm(ASCENT, "nll", {"reduction": "sequence_sum"}, sign=-1.0),
  ),
  predictions=(
    Prediction(
      "D2O, harm at the end over harm at the start",
      "ratio",
      ratio("harm", (OWN, LAST), (OWN, FIRST)),
      (-math.inf, 0.5),
    ),
    Prediction(
      f"D2O minus gradient ascent, benign KL at a harm of {HARM}",
      "nats",
      gap_at("benign_kl", "harm", HARM, OWN, ASCENT),
      BELOW,
    ),
    Prediction(
      "gradient ascent minus D2O, benign KL at the end",
      "nats",
      gap("benign_kl", (ASCENT, LAST), (OWN, LAST)),
      ABOVE,
    ),
    Prediction(
      f"D2O minus one positive, benign KL at a harm of {HARM}",
      "nats",
      gap_at("benign_kl", "harm", HARM, OWN, ONE),
      BELOW,
    ),
  ),
  plot=Plot(
    "harm",
    "benign_kl",
    "probability of a harmful completion",
    "KL given a benign completion, nats",
    "From right to left harm falls. The curves part only at little harm, where "
    "gradient ascent goes on to move benign completions.",
  ),
  paper_scale="Not run: Alpaca 7B on PKU-SafeRLHF; the paper's beta, alpha and number "
  "of samples were not found, a third party's code has 0.1, 0.1 and 11.",
  revised="A first design had the third party's beta 0.1 for all, whose losses are "
  "straight lines at gaps of single nats: no method differed from gradient ascent.",
)
