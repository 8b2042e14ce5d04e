"""Constitutional AI: labels of a confidence, clipped where it is too high."""

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Plot,
  Prediction,
  Table,
  gap,
  sweep,
)
from xpo_jax.studies.exact import soft_labels

CONFIDENCES = (0.5, 1.0, 2.0, 5.0, 10.0)
CALIBRATED, CERTAIN = 1.0, 5.0  # without and with a chain of thought


TABLE = Table(
  paper="RLAIF (Anthropic)",
  method="constitutional_ai",
  claim="An AI's probabilities are better labels than its choices; where a chain of "
  "thought makes it too certain, probabilities clipped to 0.4 and 0.6 are better than "
  "either, and the policy is less extreme.",
  where="section 4.1 to 4.3",
  design="Contextual bandit; a labeller whose logit is the gap of rewards with noise, "
  "times a confidence of 0.5 to 10; a linear preference model on 200 soft, hard or "
  "clipped labels, and the exact optimum of its reward: true reward at 0.5 nats, "
  "held-out prompts, and KL at a fixed beta of 1.",
  contrary="At a confidence of 1 soft labels give no more reward than hard ones; or at "
  "5 clipped ones no more than soft or hard ones, or no smaller KL than soft ones.",
  departs="Neither critique and revision nor texts: only the labels of the second "
  "stage. RL is replaced by its exact optimum.",
  arms=tuple(
    arm
    for kind in ("soft", "hard", "clamped")
    for arm in sweep(
      kind,
      soft_labels.learn,
      "confidence",
      CONFIDENCES,
      objective="bradley_terry",
      kind=kind,
    )
  ),
  predictions=(
    Prediction(
      "soft minus hard labels, reward at 0.5 nats, confidence 1",
      "reward",
      gap("reward", ("soft", CALIBRATED), ("hard", CALIBRATED)),
      ABOVE,
    ),
    Prediction(
      "clipped minus soft labels, reward at 0.5 nats, confidence 5",
      "reward",
      gap("reward", ("clamped", CERTAIN), ("soft", CERTAIN)),
      ABOVE,
    ),
    Prediction(
      "clipped minus hard labels, reward at 0.5 nats, confidence 5",
      "reward",
      gap("reward", ("clamped", CERTAIN), ("hard", CERTAIN)),
      ABOVE,
    ),
    Prediction(
      "clipped minus soft labels, KL at beta 1, confidence 5",
      "nats",
      gap("drift", ("clamped", CERTAIN), ("soft", CERTAIN)),
      BELOW,
    ),
  ),
  plot=Plot(
    None,
    "reward",
    "confidence of the labeller",
    "reward gained at 0.5 nats of KL",
    "Soft labels lie above hard ones and lose a little as confidence grows; clipped "
    "ones lie at or below hard ones. Intervals are of seeds; paired differences have "
    "narrower ones.",
    log_x=True,
  ),
  paper_scale="Not run: 52B models, 182,831 AI comparisons of harmlessness and 135,296 "
  "of people on helpfulness, PPO with KL weight 0.001.",
)
