"""DAPO on synthetic reviews: all four parts, with success or failure as the reward.

Paper: Yu et al. 2025, arXiv:2503.14476: 16 samples of each prompt, 16 updates for each
  round of samples, no KL; rewards of 1 and -1; a soft penalty over the last fifth of
  the longest completion.
Command: xpo train dapo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes with --data.sampling.max_completion_tokens 10
  --data.iterations 16 --data.prompts_per_iteration 16 --optimizer.learning_rate 1e-3,
  where the result is from.
Expected: the success rate of held-out prompts rises above SFT's; fewer and fewer
  prompts inform, so that more and more completions are sampled for one that is used
  (`rollout/sampled_per_used`). Of the parts, those for length matter most here: without
  them the policy learns to write on until it is cut.
Departs from the paper: 8 samples of each prompt, 4 updates, rewards of 1 and 0 (whose
  advantages are the same); at most 4 rounds of prompts an iteration. With source=FILE
  both parts for length are off: those texts may all be longer than a completion.
Result: of held-out completions {DAPO, all parts | success_and_ended | 2} succeed and
  end, {GRPO without KL | success_and_ended | 2} with GRPO without KL, none of the
  parts; {DAPO, all parts | sampled_per_used.mean | 1} completions sampled for one that
  is used; range over three seeds.
"""

import dataclasses

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(
  source: str | None = None, policy: str | None = None, threshold: float = 0.6
) -> Experiment:
  """The paper's clips; four minibatches of an iteration.

  Args:
    source: see `Task`.
    policy: see `Task`.
    threshold: of the true reward, from which on a completion is a success.
  """
  task = Task(source, policy=policy)
  success = Configured(rules.at_least, scorer=task.reward, threshold=threshold)
  feedback = Feedback(success)
  if source is None:  # other texts may be longer: see `Task.missing_eos`
    buffer = task.max_completion_tokens // 5
    feedback = dataclasses.replace(
      feedback, overlong_buffer=buffer, overlong_filtering=True
    )
  return tasks.on_rollouts(
    ObjectiveConfig("dapo"),
    task,
    feedback=feedback,
    sampling=Sampling(completions=8, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=32,
    minibatches=4,
    iterations=20,
    dynamic_sampling=4,
  )
