"""RLOO: the other samples of a prompt as baseline, at known truth."""

from xpo_jax.studies.atlas.table import Table
from xpo_jax.studies.atlas.table_parts import (
  OFFSETS,
  RUNNING_MEAN,
  VARIANCES,
  baseline,
  estimators,
)

TABLE = Table(
  paper="RLOO",
  method="rloo",
  claim="The mean reward of a prompt's other samples is a baseline that leaves the "
  "gradient unbiased and, where prompts differ in difficulty, lowers its variance "
  "below that of a running mean.",
  where="the definition of the estimator",
  design="32 prompts of 16 actions, rewards of standard deviation 1 around a mean of "
  "each prompt's own, whose spread, the offset, is swept; 4 samples a prompt, 400 "
  "batches; variance over the squared norm of the exact gradient; the mean gradient's "
  "component along the exact one and its squared distance from it, less the part by "
  "chance.",
  contrary="At offset 3 RLOO's variance not below REINFORCE's with a running mean, or "
  "at offset 0 below it; its mean gradient along the exact one off by 5 %, or its "
  "squared bias above a hundredth.",
  departs="The paper shows rewards of language models, not variances; the condition "
  "that prompts differ in difficulty is ours.",
  arms=(
    *estimators(RUNNING_MEAN, "reinforce", "offset", OFFSETS),
    *estimators("RLOO", "rloo", "offset", OFFSETS),
  ),
  predictions=baseline("RLOO"),
  plot=VARIANCES,
  paper_scale="Not run: Pythia 6.9B and Llama 7B on TL;DR and HH; k 2 and 4, beta 0.03 "
  "and 0.10, batch 256 and 512.",
  revised="A first look showed ratios of 1.3 at offset 0, 0.6 at 1 and 0.13 at 3: the "
  "prediction that held at offset 3 alone became one of the condition; the norm of the "
  "mean gradient, which bias across it does not change, became component and bias.",
)
