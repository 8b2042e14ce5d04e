"""DPO: reward at equal KL, against fine-tuning on the preferred completions."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

BETAS = (0.55, 1.0, 1.7, 3.0, 10.0)
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03)
KL = 0.1

TABLE = Table(
  paper="DPO",
  method="dpo",
  claim="At every KL to the reference DPO has more reward than fine-tuning on the "
  "preferred completions, and it comes near the best policy of that KL.",
  where="Figure 2 (left)",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs; DPO over "
  "five betas, fine-tuning on the chosen completions over its learning rate, and "
  "the exact optimum ref exp(reward / beta) / Z. 10 seeds.",
  contrary="DPO's reward at 0.1 nats at or below fine-tuning's; or below 80 % of the "
  "optimum's at 0.5 nats.",
  departs="No PPO: its own rows compare it. The optimum is known.",
  arms=(
    *sweep("optimum", bandits.optimum, "kl", (0.1, 0.25, 0.5, 1.0, 1.5)),
    *sweep("DPO", bandits.pairs, "hparams.beta", BETAS, objective="dpo"),
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
    Prediction(
      f"DPO minus preferred fine-tuning, reward at {KL} nats",
      "reward",
      lambda r: (
        r.at("DPO", "reward", "root_kl", KL**0.5)
        - r.at("preferred fine-tuning", "reward", "root_kl", KL**0.5)
      ),
      ABOVE,
    ),
    Prediction(
      "DPO's reward as a share of the optimum's, at 0.5 nats",
      "fraction",
      lambda r: (
        r.at("DPO", "reward", "root_kl", 0.5**0.5) / r.metric("optimum", "reward", 0.5)
      ),
      (0.8, 1.01),
    ),
  ),
  plot=Plot(
    "kl",
    "reward",
    "KL to the reference, nats",
    "expected reward above the reference's",
    "DPO's curve lies just below the optimum's; fine-tuning ends early and below both.",
  ),
  paper_scale="GPT-2 large on IMDb, sentiment as reward; beta 0.05 to 5, batch 64, "
  "RMSprop at 1e-6.",
)
