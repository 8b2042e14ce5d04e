"""APO: which of a pair's completions rises and which falls."""

from xpo_jax.studies.atlas.table import ABOVE, BELOW, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

BETAS = (0.1, 0.3, 1.0)


def arms(series, objective):
  """A loss over its betas."""
  return sweep(series, bandits.pairs, "hparams.beta", BETAS, objective=objective)


TABLE = Table(
  paper="APO",
  method="apo",
  claim="APO-zero raises the chosen completions and lowers the rejected ones; APO-down "
  "lowers both, the rejected ones more.",
  where="the definition of both losses",
  design="Contextual bandit, linear policy, 1,000 pairs; mean changes of the pairs' "
  "log-probabilities on the training pairs over three betas. 10 seeds.",
  contrary="At beta 0.3 APO-zero lowers the chosen completions or raises the rejected "
  "ones; or APO-down raises either.",
  departs="One set of pairs for both: the paper matches each to data.",
  arms=(*arms("APO-zero", "apo_zero"), *arms("APO-down", "apo_down")),
  predictions=(
    *(
      Prediction(
        f"{series}, change of the {side} completions' log-probability, beta 0.3",
        "nats",
        lambda r, series=series, side=side: r.metric(series, side, 0.3),
        expected,
      )
      for series, side, expected in (
        ("APO-zero", "chosen", ABOVE),
        ("APO-zero", "rejected", BELOW),
        ("APO-down", "chosen", BELOW),
        ("APO-down", "rejected", BELOW),
      )
    ),
  ),
  plot=Plot(
    None,
    "chosen",
    "beta",
    "change of log p(chosen), nats",
    "Below 0 chosen completions have become less likely: on pairs of uniform "
    "completions with either loss.",
    log_x=True,
  ),
  paper_scale="Llama-3 8B Instruct on CLAIR pairs, beta 0.1, lr 2e-7, batch 64.",
)
