"""Online DPO with AI feedback (OAIF): two samples of the policy, a judge, one update.

Paper: Guo et al. 2024 (OAIF), arXiv:2402.04792: a language model says which of two
  fresh samples is better.
Command: xpo train online_dpo [source=FILE policy=DIR --data.feedback.source.error 0.1]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, less so the more often
  the judge errs; `eval/reward` is the judge's own win rate against the start.
Departs from the paper: the judge is not a language model but the sign of the true
  reward's difference, reversed on a tenth of the pairs.
Result: true reward {online DPO | reward} at {online DPO | kl | 2} nats, from {SFT |
  reward.mean}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import noisy_judge
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Two samples of each prompt; as many samples an iteration as `rloo`."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("online_dpo", beta=0.1),
    task,
    feedback=Feedback(Configured(noisy_judge.preference, error=0.1), kind="win_rates"),
    sampling=Sampling(completions=2, max_completion_tokens=task.max_completion_tokens),
    prompts_per_iteration=64,
  )
