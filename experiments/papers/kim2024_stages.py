"""sDPO: the data in stages, each stage's policy the next reference."""

from xpo_jax.studies.atlas.table import (
  ABOVE,
  Prediction,
  Table,
  at_equal_kl,
  frontier,
  gap,
  sweep,
)
from xpo_jax.studies.atlas.table_parts import over_beta
from xpo_jax.studies.exact import bandits

BETAS = (0.55, 1.0, 1.7, 3.0, 5.5, 10.0)

TABLE = Table(
  paper="sDPO",
  method="sdpo",
  claim="DPO on the data in stages, each with the policy of the stage before as its "
  "reference, is better than DPO on all of it at once.",
  where="Table 2",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs; two stages "
  "of half the pairs and half the steps against all at once, over six betas.",
  contrary="Two stages have less reward at equal beta, or less at an equal KL to the "
  "first reference.",
  departs="A linear policy on a bandit in place of a language model, reward in place "
  "of benchmarks; stages of equal size and source, not two data sets; the stages are "
  "random halves: a log-linear policy cannot depend on the order of easy and hard, to "
  "which the paper owes much of its gain.",
  arms=(
    *over_beta("DPO", "dpo", BETAS),
    *sweep("sDPO", bandits.stages, "hparams.beta", BETAS, objective="dpo"),
  ),
  predictions=(
    Prediction(
      "sDPO minus DPO, reward at beta 1",
      "reward",
      gap("reward", ("sDPO", 1.0), ("DPO", 1.0)),
      ABOVE,
    ),
    at_equal_kl("sDPO", "DPO", 0.5),
  ),
  plot=frontier(
    "KL to the first reference. At one beta two stages go further; the question is "
    "whether their curve is higher."
  ),
  paper_scale="Not run: SOLAR 10.7B: OpenOrca pairs (12,000), then UltraFeedback "
  "(60,000).",
  revised="After a first look betas of 0.55 and 10 were added, since some seeds "
  "bracketed 0.5 nats.",
)
