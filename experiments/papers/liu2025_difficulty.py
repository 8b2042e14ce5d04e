"""Dr. GRPO: division by the spread of a prompt's rewards turns the gradient."""

from xpo_jax.studies.atlas.table import ABOVE, Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import gradients

OFFSETS = (0.0, 3.0)


def arms(series, objective):
  """An estimator over the spread of the prompts' difficulty."""
  return sweep(
    series,
    gradients.estimator,
    "offset",
    OFFSETS,
    objective=objective,
    hparams={"beta": None},
  )


TABLE = Table(
  paper="Dr. GRPO",
  method="dr_grpo",
  claim="GRPO's division by the standard deviation of a prompt's rewards biases the "
  "gradient by difficulty; without it the gradient has the exact direction.",
  where="the analysis of GRPO's biases",
  design="32 prompts of 16 actions, rewards of standard deviation 1; 4 samples a "
  "prompt, 400 batches; cosine of the mean gradient with the exact one. 10 seeds.",
  contrary="Dr. GRPO's cosine no larger than GRPO's, or below 0.99.",
  departs="Completions of one token: the bias by length is not tested.",
  arms=(*arms("GRPO", "grpo"), *arms("Dr. GRPO", "dr_grpo")),
  predictions=(
    Prediction(
      "Dr. GRPO minus GRPO, cosine with the exact gradient",
      "cosine",
      lambda r: r.metric("Dr. GRPO", "cosine", 0.0) - r.metric("GRPO", "cosine", 0.0),
      ABOVE,
    ),
    Prediction(
      "Dr. GRPO, cosine with the exact gradient",
      "cosine",
      lambda r: r.metric("Dr. GRPO", "cosine", 0.0),
      (0.99, 1.001),
    ),
  ),
  plot=Plot(
    None,
    "cosine",
    "standard deviation of the prompts' mean rewards",
    "cosine of mean and exact gradient",
    "Dr. GRPO's mean gradient has the exact one's direction, GRPO's is turned.",
  ),
  paper_scale="Qwen2.5 Math 1.5B and 7B on MATH.",
)
