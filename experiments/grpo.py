"""GRPO on synthetic reviews: rewards divided by their group's standard deviation.

Paper: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300: 64 samples of each question,
  one update for each round of samples, KL in the loss with beta 0.04.
Command: xpo train grpo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's; no number of the
  paper, which is of mathematics, can be reproduced at this size.
Departs from the paper: 8 samples of each prompt.
Result: true reward {GRPO | reward} at {GRPO | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """The paper's beta; as many samples an iteration as `rloo`, in groups of eight."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("grpo"),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=16,
  )
