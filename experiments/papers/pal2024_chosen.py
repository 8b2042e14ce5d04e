"""DPOP: DPO may lower the chosen completions; a penalty forbids it."""

from xpo_jax.studies.atlas.table import BELOW, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

BETAS = (0.1, 0.3, 0.55)


def arms(series, objective, **hparams):
  """A loss over its betas."""
  return sweep(
    series,
    bandits.pairs,
    "hparams.beta",
    BETAS,
    objective=objective,
    hparams=hparams,
  )


TABLE = Table(
  paper="DPOP (Smaug)",
  method="dpop",
  claim="DPO can raise the margin of a pair while it lowers the log-probability of the "
  "chosen completion; DPOP's penalty keeps that at the reference's or above.",
  where="abstract",
  design="Contextual bandit, linear policy, 1,000 pairs; mean change of the chosen "
  "completions' log-probability on the training pairs, DPO and DPOP with penalty 50, "
  "over three betas. 10 seeds.",
  contrary="At beta 0.3 DPO's chosen completions do not fall; or DPOP's fall by more "
  "than 0.1 nats.",
  departs="Pairs are of random completions: the paper's small edit distances are not "
  "represented, and its collapse by them is not tested.",
  arms=(*arms("DPO", "dpo"), *arms("DPOP", "dpop", penalty=50.0)),
  predictions=(
    Prediction(
      "DPO, change of the chosen completions' log-probability, beta 0.3",
      "nats",
      lambda r: r.metric("DPO", "chosen", 0.3),
      BELOW,
    ),
    Prediction(
      "DPOP, change of the chosen completions' log-probability, beta 0.3",
      "nats",
      lambda r: r.metric("DPOP", "chosen", 0.3),
      (-0.1, 10.0),
    ),
  ),
  plot=Plot(
    None,
    "chosen",
    "beta",
    "change of log p(chosen), nats",
    "DPO's chosen completions fall further the weaker the tie; DPOP's do not fall.",
    log_x=True,
  ),
  paper_scale="Smaug 7B to 72B on MetaMath, ARC and HellaSwag pairs.",
)
