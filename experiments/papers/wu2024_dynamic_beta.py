"""beta-DPO: a beta for each batch, and outlying pairs left out."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

BETAS = (0.1, 0.3, 0.55, 1.0, 1.7, 3.0)
KL = 0.5


def arms(series, objective, flipped, **hparams):
  """A method over its betas, at a share of flipped labels."""
  return sweep(
    series,
    bandits.pairs,
    "hparams.beta",
    BETAS,
    objective=objective,
    hparams=hparams,
    data={"flipped": flipped},
  )


TABLE = Table(
  paper="beta-DPO",
  method="beta_dpo",
  claim="Calibrating beta to each batch and leaving out outlying pairs makes DPO "
  "better, most where labels are noisy.",
  where="Table 1",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs, a fifth of "
  "the labels flipped; beta-DPO that keeps 80 % of the pairs against DPO over six "
  "betas; the dynamic part with alpha 0.02, as the margin is in nats. 20 seeds.",
  contrary="beta-DPO's accuracy at beta 0.3, or its reward at equal KL, below DPO's.",
  departs="All pairs are one batch, so that beta moves slowly; alpha is the paper's "
  "0.6 scaled to margins of some ten nats.",
  arms=(
    *arms("DPO", "dpo", 0.2),
    *arms("beta-DPO", "beta_dpo", 0.2, alpha=0.02, keep=0.8),
  ),
  predictions=(
    Prediction(
      "beta-DPO minus DPO, accuracy at beta 0.3",
      "fraction of pairs",
      lambda r: (
        r.metric("beta-DPO", "accuracy", 0.3) - r.metric("DPO", "accuracy", 0.3)
      ),
      ABOVE,
    ),
    Prediction(
      f"beta-DPO minus DPO, reward at {KL} nats",
      "reward",
      lambda r: (
        r.at("beta-DPO", "reward", "root_kl", KL**0.5)
        - r.at("DPO", "reward", "root_kl", KL**0.5)
      ),
      ABOVE,
    ),
  ),
  seeds=20,
  plot=Plot(
    "kl",
    "reward",
    "KL to the reference, nats",
    "expected reward above the reference's",
    "A curve further up has more reward at the same KL; each point is a beta.",
  ),
  paper_scale="Pythia 410M to 2.8B on Anthropic HH and TL;DR; alpha 0.6, keep 0.8.",
)
