"""GPO: convex links of the margin, one trade-off of reward and KL."""

from xpo_jax.studies.atlas.table import Table, at_equal_kl, frontier
from xpo_jax.studies.atlas.table_parts import over_beta

BETAS = (0.1, 0.3, 0.55, 1.0, 1.7, 3.0)
DPO = "logistic (DPO)"
LINKS = {
  DPO: "logistic",
  "squared (IPO)": "squared",
  "hinge (SLiC)": "hinge",
  "exponential": "exponential",
  "truncated quadratic": "truncated_quadratic",
}


TABLE = Table(
  paper="GPO",
  method="gpo",
  claim="All convex links trace similar trade-offs of reward and KL.",
  where="abstract",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs; five links "
  "over six betas; reward at 0.5 nats, interpolated along each frontier, minus the "
  "logistic link's. Similar means within 0.05 of reward.",
  contrary="Some link's reward at 0.5 nats differs from the logistic link's by more "
  "than 0.05.",
  departs="A linear policy in place of a language model; reward is known.",
  arms=tuple(
    arm
    for series, link in LINKS.items()
    for arm in over_beta(series, "gpo", BETAS, hparams={"link": link})
  ),
  predictions=tuple(
    at_equal_kl(series, DPO, 0.5, (-0.05, 0.05)) for series in LINKS if series != DPO
  ),
  plot=frontier(
    "The links' curves lie on one another; their points, the same betas, do not."
  ),
  paper_scale="Not run: A T5 policy on TL;DR labelled by a golden reward model.",
)
