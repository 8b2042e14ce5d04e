"""Iterative DPO (RLHF Workflow): rounds of best against worst of eight samples.

Paper: Dong et al. 2024, arXiv:2405.07863; theory Xiong et al. 2023, arXiv:2312.11456:
  three rounds of 20,000 prompts, eight samples each, DPO for two epochs on the best
  against the worst.
Command: xpo train iterative_dpo [source=FILE policy=DIR --data.ref-update-every None]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises with every round. In the released
  code, and here, each round's policy is the next one's reference; with
  `--data.ref-update-every None` the start stays the reference, as in the theory, and
  the KL to it is smaller.
Departs from the paper: 320 prompts a round; the true reward in place of a reward model;
  the theory trains on all rounds' pairs together, the code, and this recipe, on the
  newest.
Result: true reward {iterative DPO | reward} at {iterative DPO | kl | 2} nats, from {SFT
  | reward.mean}; three seeds.
"""

from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Three rounds, each of two passes of 20 updates."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("dpo", beta=0.1),
    task,
    sampling=Sampling(
      completions=8,
      max_completion_tokens=task.max_completion_tokens,
      prompts_at_once=32,
    ),
    iterations=3,
    prompts_per_iteration=320,
    minibatches=20,
    ppo_epochs=2,
    ref_update_every=1,
    optimizer=Optimizer(learning_rate=1e-4, schedule="constant"),
    loop=Loop(log_every=1, eval_every=1),
  )
