"""ORPO: SFT raises rejected completions too; an odds-ratio term in one stage."""

import numpy as np

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Arm,
  Plot,
  Prediction,
  Table,
  gap,
  metric,
)
from xpo_jax.studies.exact import sentences

STEPS = 300
WEIGHTS = (0.1, 0.25, 1.0, 4.0, 16.0)  # 0.1 to 0.25 in the paper
BETAS = (0.03, 0.1, 0.3, 1.0)
LAMBDA = 0.25


def stage(objective, hparams, steps):
  """A stage of `sentences.domain`."""
  return {"objective": objective, "hparams": hparams, "steps": steps}


SFT = {"reduction": "token_mean"}
ORPO = [
  Arm(
    "ORPO",
    weight,
    sentences.domain,
    {"first": stage("orpo", {"weight": weight}, STEPS)},
  )
  for weight in WEIGHTS
]
TWO_STAGES = [
  Arm(
    "SFT, then DPO",
    beta,
    sentences.domain,
    {
      "first": stage("nll", SFT, STEPS // 2),
      "second": stage("dpo", {"beta": beta}, STEPS // 2),
    },
  )
  for beta in BETAS
]


def best(r, series):
  """Reward of a series' best strength, each seed's own, `[S]`."""
  return np.max([r.metric(series, "reward", at) for at in r.strengths(series)], 0)


TABLE = Table(
  paper="ORPO",
  method="orpo",
  claim="SFT on chosen completions raises rejected ones too. A weak odds-ratio term "
  "in the same stage holds them down, at little cost in the chosen ones, and is "
  "enough: no second stage of preference optimisation is needed.",
  where="abstract, and the study of log-probabilities during SFT",
  design="Trees of completions of 1 to 5 tokens; a base policy, and 400 pairs that "
  "another policy wrote, labelled by Bradley-Terry; 300 steps of SFT, of ORPO over "
  "five weights, or 150 of SFT and 150 of DPO over four betas; exact expectations "
  "over all pairs of the writer.",
  contrary="SFT lowers the rejected completions; or ORPO, lambda 0.25, does not lower "
  "them relative to SFT, or costs the chosen ones 0.2 nats; or ORPO's best weight has "
  "less reward than the best beta of SFT and DPO in as many steps.",
  departs="Rewards are known; each method takes its best strength by true reward. "
  "Completions of at most 5 tokens, one prompt.",
  arms=(
    Arm("SFT", 0.0, sentences.domain, {"first": stage("nll", SFT, STEPS)}),
    *ORPO,
    *TWO_STAGES,
  ),
  predictions=(
    Prediction(
      "SFT, change of rejected completions",
      "nats",
      metric("rejected", ("SFT", None)),
      ABOVE,
    ),
    Prediction(
      f"ORPO minus SFT, rejected completions, lambda {LAMBDA}",
      "nats",
      gap("rejected", ("ORPO", LAMBDA), ("SFT", None)),
      BELOW,
    ),
    Prediction(
      f"ORPO minus SFT, chosen completions, lambda {LAMBDA}",
      "nats",
      gap("chosen", ("ORPO", LAMBDA), ("SFT", None)),
      (-0.2, np.inf),
    ),
    Prediction(
      "ORPO minus SFT then DPO, reward at the best strengths",
      "reward",
      lambda r: best(r, "ORPO") - best(r, "SFT, then DPO"),
      ABOVE,
    ),
  ),
  plot=Plot(
    "chosen",
    "rejected",
    "change of chosen completions, nats",
    "change of rejected completions, nats",
    "SFT is furthest up and right; greater weights of ORPO and smaller betas of DPO "
    "lead down to the left along about one curve, rejected completions faster than "
    "chosen.",
  ),
  paper_scale="Not run: OPT 125M to 1.3B, Phi-2, Llama-2 7B and Mistral 7B on HH and "
  "UltraFeedback; lambda 0.1 to 0.25, lr 5e-6, 5 epochs.",
  revised="Weight 16 was added after a first run in which ORPO's reward rose up to its "
  "last weight, 4.",
)
