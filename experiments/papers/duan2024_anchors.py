"""D2O: harmful completions alone, with the policy's own samples as anchors."""

from xpo_jax.studies.atlas.table import ABOVE, BELOW, Arm, Plot, Prediction, Table
from xpo_jax.studies.exact import negatives

LAST, FIRST = 300.0, 2.0
HARM = 0.1
BETA = {"beta": 1.0, "alpha": 1.0}  # for gaps of single nats


def arm(series, objective, hparams, **own):
  """A loss along training on the same harmful completions."""
  settings = {"objective": objective, "hparams": hparams, **own}
  return Arm(series, 0.0, negatives.avoid, settings)


def gap(first, second):
  """KL given a benign completion, first minus second, at equal harm."""
  return lambda r: (
    r.at(first, "benign_kl", "harm", HARM) - r.at(second, "benign_kl", "harm", HARM)
  )


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
  "completion at a harm of 0.1 and at the end. 10 seeds.",
  contrary="D2O's harm stays above half of the reference's; or it moves benign "
  "completions no less than gradient ascent, at equal harm or at the end; or no less "
  "than with one positive, at equal harm.",
  departs="Form and settings of D2O are a third party's; anchors are the first "
  "policy's, not renewed; one reference for both terms. Revised: a first design had "
  "the third party's beta 0.1 for all, whose losses are straight lines at gaps of "
  "single nats: no method differed from gradient ascent (benign KL at the end 0.10 "
  "[-0.03, 0.22] nats lower).",
  arms=(
    arm("D2O", "d2o", BETA),
    arm("one positive (DPO)", "d2o", BETA, samples=1),
    arm("NPO", "npo", {"beta": 1.0}),
    arm("gradient ascent", "nll", {"reduction": "sequence_sum"}, sign=-1.0),
  ),
  predictions=(
    Prediction(
      "D2O, harm at the end over harm at the start",
      "ratio",
      lambda r: r.metric("D2O", "harm", LAST) / r.metric("D2O", "harm", FIRST),
      (0.0, 0.5),
    ),
    Prediction(
      f"D2O minus gradient ascent, benign KL at a harm of {HARM}",
      "nats",
      gap("D2O", "gradient ascent"),
      BELOW,
    ),
    Prediction(
      "gradient ascent minus D2O, benign KL at the end",
      "nats",
      lambda r: (
        r.metric("gradient ascent", "benign_kl", LAST)
        - r.metric("D2O", "benign_kl", LAST)
      ),
      ABOVE,
    ),
    Prediction(
      f"D2O minus one positive, benign KL at a harm of {HARM}",
      "nats",
      gap("D2O", "one positive (DPO)"),
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
)
