"""Robust DPO: flipped labels, an unbiased estimate of the clean loss."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import bandits

KL = 0.5
FLIPPED = {"flipped": 0.3}


def arms(series, objective, betas, **hparams):
  """A method on flipped labels over its betas."""
  return sweep(
    series,
    bandits.pairs,
    "hparams.beta",
    betas,
    objective=objective,
    hparams=hparams,
    data=FLIPPED,
  )


TABLE = Table(
  paper="Robust DPO",
  method="robust_dpo",
  claim="Under randomly flipped labels the debiased loss learns what DPO would learn "
  "from clean ones, and its policy is better than DPO's.",
  where="abstract",
  design="Contextual bandit, linear policy, held-out prompts, 1,000 pairs, 30 % of the "
  "labels flipped, the flip rate known to the method; DPO, conservative DPO and "
  "robust DPO over their betas. 20 seeds.",
  contrary="Robust DPO's reward at equal beta, its accuracy, or its reward at equal KL "
  "below DPO's.",
  departs="Reward is known; the paper's bound is not tested.",
  arms=(
    *arms("DPO", "dpo", (0.1, 0.3, 1.0)),
    *arms("conservative DPO", "dpo", (0.03, 0.1, 0.3, 1.0), label_smoothing=0.3),
    *arms("robust DPO", "robust_dpo", (1.0, 3.0, 10.0, 30.0), flip_rate=0.3),
  ),
  predictions=(
    Prediction(
      "robust DPO minus DPO, reward at beta 1",
      "reward",
      lambda r: r.metric("robust DPO", "reward", 1.0) - r.metric("DPO", "reward", 1.0),
      ABOVE,
    ),
    Prediction(
      "robust DPO minus DPO, accuracy at beta 1",
      "fraction of pairs",
      lambda r: (
        r.metric("robust DPO", "accuracy", 1.0) - r.metric("DPO", "accuracy", 1.0)
      ),
      ABOVE,
    ),
    Prediction(
      f"robust DPO minus DPO, reward at {KL} nats",
      "reward",
      lambda r: (
        r.at("robust DPO", "reward", "root_kl", KL**0.5)
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
    "At one beta robust DPO goes furthest; whether a curve lies above another at one "
    "KL is another question.",
  ),
  paper_scale="GPT-2 large on IMDb; epsilon 0.1, beta 0.1.",
)
