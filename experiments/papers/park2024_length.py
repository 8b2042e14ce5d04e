"""R-DPO: labels that favour length, a policy that does not lengthen."""

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Plot,
  Prediction,
  Table,
  gap,
  metric,
  sweep,
)
from xpo_jax.studies.exact import bandits

BIASED = {"length_bias": 0.1, "temperature": 1.0}
ALPHAS = (0.0, 0.025, 0.05, 0.1, 0.2)  # 0.1 is the labels' bias

TABLE = Table(
  paper="R-DPO",
  method="r_dpo",
  claim="DPO exploits a length bias of the labels and lengthens its completions; a "
  "penalty on length in the loss keeps length near the reference's, and quality rises.",
  where="abstract",
  design="Contextual bandit, linear policy, held-out prompts; 1,000 pairs labelled by "
  "quality plus 0.1 nat a token of length; beta 0.5; alpha from 0 (DPO) to twice the "
  "bias. Quality is the true reward, which does not depend on length.",
  contrary="DPO's length at or below the reference's; or R-DPO with the labels' own "
  "bias no shorter than DPO; or its quality no higher.",
  departs="Quality is a known reward, not a judge's win rate.",
  arms=sweep(
    "R-DPO",
    bandits.pairs,
    "hparams.alpha",
    ALPHAS,
    objective="r_dpo",
    hparams={"beta": 0.5},
    data=BIASED,
  ),
  predictions=(
    Prediction(
      "DPO (alpha 0), length minus the reference's",
      "tokens",
      metric("length", ("R-DPO", 0.0)),
      ABOVE,
    ),
    Prediction(
      "R-DPO minus DPO, length",
      "tokens",
      gap("length", ("R-DPO", 0.1), ("R-DPO", 0.0)),
      BELOW,
    ),
    Prediction(
      "R-DPO minus DPO, quality",
      "reward",
      gap("reward", ("R-DPO", 0.1), ("R-DPO", 0.0)),
      ABOVE,
    ),
  ),
  plot=Plot(
    "length",
    "reward",
    "expected length minus the reference's, tokens",
    "expected quality",
    "From right to left alpha grows: length falls, and quality is highest near the "
    "labels' own bias, 0.1.",
  ),
  paper_scale="Not run: Pythia 2.8B on Anthropic HH and TL;DR, beta 0.1 to 0.5.",
)
