"""GSPO on synthetic reviews: ratio and clip of whole completions.

Paper: Zheng et al. 2025, arXiv:2507.18071: four minibatches a round of samples, clips
  of 3e-4 and 4e-4 around a length-normalised ratio, no KL.
Command: xpo train gspo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, though more of the
  samples are clipped than with token ratios, as the paper finds.
Departs from the paper: clips of 0.03 and 0.04, because a ratio moves in proportion to
  the learning rate, which here is a hundred times that of a large model.
Result: true reward {GSPO | reward} at {GSPO | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Four minibatches of an iteration, as in the paper."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("gspo", clip_low=0.03, clip_high=0.04),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=32,
    minibatches=4,
    iterations=20,
  )
