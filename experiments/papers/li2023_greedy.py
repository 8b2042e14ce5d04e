"""ReMax: the reward of the greedy completion as baseline."""

from xpo_jax.studies.atlas.table import Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import gradients

OFFSETS = (0.0, 1.0, 3.0, 10.0)


def arms(series, objective, samples):
  """An estimator over the spread of the prompts' difficulty."""
  return sweep(
    series,
    gradients.estimator,
    "offset",
    OFFSETS,
    objective=objective,
    hparams={"beta": None},
    samples=samples,
  )


TABLE = Table(
  paper="ReMax",
  method="remax",
  claim="Subtracting the reward of the policy's greedy completion leaves the gradient "
  "unbiased and lowers its variance.",
  where="abstract",
  design="32 prompts of 16 actions, rewards of standard deviation 1 around a mean of "
  "each prompt's own; one sample and one greedy completion a prompt against two "
  "samples with a running mean, 400 batches. 10 seeds.",
  contrary="With prompts' means 3 apart, ReMax's variance not below half of "
  "REINFORCE's; or the norm of its mean gradient off by 15 %.",
  departs="Rewards of single tokens; variance against the exact gradient.",
  arms=(
    *arms("REINFORCE, running mean", "reinforce", 2),
    *arms("ReMax", "remax", 2),
  ),
  predictions=(
    Prediction(
      "variance of ReMax over that of REINFORCE, offset 3",
      "ratio",
      lambda r: (
        r.metric("ReMax", "variance", 3.0)
        / r.metric("REINFORCE, running mean", "variance", 3.0)
      ),
      (0.0, 0.5),
    ),
    Prediction(
      "norm of ReMax's mean gradient over the exact one's, offset 0",
      "ratio",
      lambda r: r.metric("ReMax", "norm", 0.0),
      (0.85, 1.15),
    ),
  ),
  plot=Plot(
    None,
    "variance",
    "standard deviation of the prompts' mean rewards",
    "gradient variance over squared norm",
    "The running mean's variance grows with the spread of the prompts' difficulty; "
    "that of the greedy baseline does not.",
  ),
  paper_scale="Llama-2 7B on full-hh-rlhf.",
)
