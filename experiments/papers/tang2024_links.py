"""GPO: convex links of the margin, one trade-off of reward and KL."""

from xpo_jax.studies.atlas.table import Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

BETAS = (0.1, 0.3, 0.55, 1.0, 1.7, 3.0)
KL = 0.5
LINKS = {
  "logistic (DPO)": "logistic",
  "squared (IPO)": "squared",
  "hinge (SLiC)": "hinge",
  "exponential": "exponential",
  "truncated quadratic": "truncated_quadratic",
}


def arms(series):
  """A link over its betas."""
  return sweep(
    series,
    bandits.pairs,
    "hparams.beta",
    BETAS,
    objective="gpo",
    hparams={"link": LINKS[series]},
  )


def gap(series):
  """Reward of a link minus the logistic link's, at equal KL."""
  return lambda r: (
    r.at(series, "reward", "root_kl", KL**0.5)
    - r.at("logistic (DPO)", "reward", "root_kl", KL**0.5)
  )


TABLE = Table(
  paper="GPO",
  method="gpo",
  claim="All convex links trace similar trade-offs of reward and KL; they differ in "
  "the beta at which each is best.",
  where="abstract",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs; five links "
  "over six betas; reward at 0.5 nats, interpolated along each frontier, minus the "
  "logistic link's. Similar means within 0.05 of reward. 10 seeds.",
  contrary="Some link's reward at 0.5 nats differs from the logistic link's by more "
  "than 0.05.",
  departs="A linear policy in place of a language model; reward is known.",
  arms=tuple(arm for series in LINKS for arm in arms(series)),
  predictions=tuple(
    Prediction(
      f"{series} minus logistic, reward at {KL} nats",
      "reward",
      gap(series),
      (-0.05, 0.05),
    )
    for series in LINKS
    if series != "logistic (DPO)"
  ),
  plot=Plot(
    "kl",
    "reward",
    "KL to the reference, nats",
    "expected reward above the reference's",
    "The links' curves lie on one another; their points, the same betas, do not.",
  ),
  paper_scale="A T5 policy on TL;DR labelled by a golden reward model.",
)
