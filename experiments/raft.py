"""RAFT on synthetic reviews: fine-tuning on the best of eight samples.

Paper: Dong et al. 2023, arXiv:2304.06767: the best of 8 to 32 samples of each prompt,
  then supervised fine-tuning on these, in rounds.
Command: xpo train raft [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, less than `rloo`'s
  from as many samples, of which RAFT learns from one in eight (Ahmadian et al. 2024,
  arXiv:2402.14740, Table 1: RLOO above RAFT by 1 to 5 points of win rate).
Result: true reward {RAFT | reward} at {RAFT | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Eight samples of each prompt; small steps alone keep the policy near the start."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("raft"),
    task,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=16,
    optimizer=Optimizer(learning_rate=1e-4, schedule="constant"),
  )
