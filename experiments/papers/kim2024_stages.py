"""sDPO: the data in stages, each stage's policy the next reference."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

BETAS = (0.55, 1.0, 1.7, 3.0, 5.5, 10.0)
KL = 0.5

TABLE = Table(
  paper="sDPO",
  method="sdpo",
  claim="DPO on the data in stages, each with the policy of the stage before as its "
  "reference, is better than DPO on all of it at once.",
  where="Table 2",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs; two stages "
  "of half the pairs and half the steps against all at once, over six betas. 10 "
  "seeds.",
  contrary="Two stages have less reward at equal beta, or less at an equal KL to the "
  "first reference.",
  departs="The stages are random halves: a log-linear policy cannot depend on the "
  "order of easy and hard, to which the paper owes much of its gain.",
  arms=(
    *sweep("DPO", bandits.pairs, "hparams.beta", BETAS, objective="dpo"),
    *sweep("sDPO", bandits.stages, "hparams.beta", BETAS, objective="dpo"),
  ),
  predictions=(
    Prediction(
      "sDPO minus DPO, reward at beta 1",
      "reward",
      lambda r: r.metric("sDPO", "reward", 1.0) - r.metric("DPO", "reward", 1.0),
      ABOVE,
    ),
    Prediction(
      f"sDPO minus DPO, reward at {KL} nats",
      "reward",
      lambda r: (
        r.at("sDPO", "reward", "root_kl", KL**0.5)
        - r.at("DPO", "reward", "root_kl", KL**0.5)
      ),
      ABOVE,
    ),
  ),
  plot=Plot(
    "kl",
    "reward",
    "KL to the first reference, nats",
    "expected reward above the reference's",
    "At one beta two stages go further; the question is whether their curve is higher.",
  ),
  paper_scale="SOLAR 10.7B: OpenOrca pairs (12,000), then UltraFeedback (60,000).",
)
