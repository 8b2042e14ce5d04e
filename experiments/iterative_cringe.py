"""Iterative CRINGE on synthetic reviews: sample, label, train, in rounds.

Paper: Adolphs et al. 2022, arXiv:2211.05826, whose policy is labelled and trained in
  turn; Xu et al. 2023, arXiv:2312.16682, for pairs too.
Command: xpo train iterative_cringe [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises with every round.
Departs from the papers: the sign of the true reward is the label, in place of a
  classifier's; each round trains on its own samples alone, without human labels; alpha
  is 0.1, not 1.
Result: true reward {iterative CRINGE | reward} at {iterative CRINGE | kl | 2} nats,
  from {SFT | reward.mean}; three seeds.
"""

from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task
from xpo_jax.train import pair_construction


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Four rounds, each of one pass of 24 updates."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("cringe", alpha=0.1),
    task,
    sampling=Sampling(
      completions=4,
      max_completion_tokens=task.max_completion_tokens,
      prompts_at_once=64,
    ),
    pair_construction=Configured(pair_construction.rated_by_threshold, threshold=0.0),
    iterations=4,
    prompts_per_iteration=384,
    minibatches=24,
    loop=Loop(log_every=1, eval_every=1),
  )
