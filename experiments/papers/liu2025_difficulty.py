"""Dr. GRPO: division by the spread of a prompt's rewards turns the gradient."""

import math

from xpo_jax.studies.atlas.table import (
  ABOVE,
  BELOW,
  Plot,
  Prediction,
  Table,
  gap,
  metric,
)
from xpo_jax.studies.atlas.table_parts import estimators

SPREADS = (0.0, 0.5, 1.0)

TABLE = Table(
  paper="Dr. GRPO",
  method="dr_grpo",
  claim="GRPO's division by the standard deviation of a prompt's rewards biases the "
  "gradient by difficulty; without it the gradient has the exact direction.",
  where="the analysis of GRPO's biases",
  design="32 prompts of 16 actions; a prompt's rewards have a standard deviation of "
  "its own, whose log has a standard deviation of 0, 0.5 or 1; 4 samples a prompt, 400 "
  "batches; cosine of the exact gradient and the estimator's expectation, corrected "
  "for the noise of a mean.",
  contrary="Dr. GRPO's cosine no larger than GRPO's, or below 0.99, at any spread; or "
  "GRPO's no smaller at spread 1 than at 0.",
  departs="Completions of one token: the bias by length is not tested.",
  arms=(
    *estimators("GRPO", "grpo", "spread", SPREADS),
    *estimators("Dr. GRPO", "dr_grpo", "spread", SPREADS),
  ),
  predictions=(
    *(
      Prediction(
        f"Dr. GRPO minus GRPO, cosine with the exact gradient, spread {spread:g}",
        "cosine",
        gap("cosine", ("Dr. GRPO", spread), ("GRPO", spread)),
        ABOVE,
      )
      for spread in SPREADS
    ),
    *(
      Prediction(
        f"Dr. GRPO, cosine with the exact gradient, spread {spread:g}",
        "cosine",
        metric("cosine", ("Dr. GRPO", spread)),
        (0.99, math.inf),
      )
      for spread in SPREADS
    ),
    Prediction(
      "GRPO, cosine at spread 1 minus at 0",
      "cosine",
      gap("cosine", ("GRPO", 1.0), ("GRPO", 0.0)),
      BELOW,
    ),
  ),
  plot=Plot(
    None,
    "cosine",
    "standard deviation of the log of the prompts' reward spreads",
    "cosine of expected and exact gradient",
    "Dr. GRPO's gradient has the exact one's direction; GRPO's is turned further the "
    "more prompts differ in the spread of their rewards.",
  ),
  paper_scale="Not run: Qwen2.5 Math 1.5B and 7B on MATH.",
  revised="The first design moved the prompts' mean rewards, which change neither "
  "estimator; their spreads, by which GRPO divides, are swept in its place, and the "
  "cosine is corrected for noise.",
)
