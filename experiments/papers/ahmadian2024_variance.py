"""RLOO: the other samples of a prompt as baseline, at known truth."""

from xpo_jax.studies.atlas.table import Plot, Prediction, Table, sweep
from xpo_jax.studies.exact import gradients

OFFSETS = (0.0, 1.0, 3.0, 10.0)


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
  paper="RLOO",
  method="rloo",
  claim="The mean reward of a prompt's other samples is a baseline that leaves the "
  "gradient unbiased and lowers its variance below that of a running mean.",
  where="the definition of the estimator",
  design="32 prompts of 16 actions, rewards of standard deviation 1 around a mean of "
  "each prompt's own; 4 samples a prompt, 400 batches; variance over the squared norm "
  "of the exact gradient, and the mean gradient against it. 10 seeds.",
  contrary="With prompts' means 3 apart, RLOO's variance not below a third of "
  "REINFORCE's with a running mean; or the norm of its mean gradient off by 10 %.",
  departs="The paper shows rewards of language models, not variances.",
  arms=(
    *arms("REINFORCE, running mean", "reinforce"),
    *arms("RLOO", "rloo"),
  ),
  predictions=(
    Prediction(
      "variance of RLOO over that of REINFORCE, offset 3",
      "ratio",
      lambda r: (
        r.metric("RLOO", "variance", 3.0)
        / r.metric("REINFORCE, running mean", "variance", 3.0)
      ),
      (0.0, 1 / 3),
    ),
    Prediction(
      "norm of RLOO's mean gradient over the exact one's, offset 0",
      "ratio",
      lambda r: r.metric("RLOO", "norm", 0.0),
      (0.9, 1.1),
    ),
  ),
  plot=Plot(
    None,
    "variance",
    "standard deviation of the prompts' mean rewards",
    "gradient variance over squared norm",
    "The running mean's variance grows with the spread of the prompts' difficulty; "
    "RLOO's does not.",
  ),
  paper_scale="Pythia 6.9B and Llama 7B on TL;DR and HH; k 2 and 4, beta 0.03 and "
  "0.10, batch 256 and 512.",
)
