"""GRPO of Llama 3 8B on its own samples of 1,024 tokens: a run for a slice of TPUs.

Paper: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300.
Command: xpo train grpo_llama_8b path=PROMPTS policy=DIR
  Before it: xpo check grpo_llama_8b --topology v5e:16x16
Hardware: a slice of TPUs; it trains with fsdp over all chips and samples with the
  weights split over groups of 8.
Expected: no number of the paper; the reward, here VADER's, is to be replaced by your
  own (--data.feedback.source).
Departs from the paper: 4 samples of each prompt, not 64.
Result: not run.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import llama


def experiment(
  path: str = "hub:allenai/ultrafeedback_binarized_cleaned",
  policy: str | None = None,
  prompts: int = 256,
) -> Experiment:
  """Four completions of each prompt, one update an iteration."""
  return llama.on_rollouts(
    ObjectiveConfig("grpo"),
    path,
    policy,
    completions=4,
    prompts=prompts,
    minibatches=1,
  )
