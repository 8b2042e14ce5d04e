"""PPO of Llama 3 8B on its own samples of 1,024 tokens: a run for a slice of TPUs.

Paper: Ouyang et al. 2022, arXiv:2203.02155, with a value head on the policy's states.
Command: xpo train ppo_llama_8b path=PROMPTS policy=DIR
  Before it: xpo check ppo_llama_8b --topology v5e:16x16
Hardware: a slice of TPUs; it trains with fsdp over all chips and samples with the
  weights split over groups of 8.
Expected: no number of the paper; the reward, here VADER's, is to be replaced by your
  own (--data.feedback.source).
Departs from the paper: no critic of its own, one pass over each round of samples.
Result: not run.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import llama


def experiment(
  path: str = "hub:allenai/ultrafeedback_binarized_cleaned",
  policy: str | None = None,
  prompts: int = 512,
) -> Experiment:
  """One completion of each prompt, two updates an iteration."""
  return llama.on_rollouts(
    ObjectiveConfig("ppo", beta=0.05),
    path,
    policy,
    completions=1,
    prompts=prompts,
    minibatches=2,
  )
