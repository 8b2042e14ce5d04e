"""Direct RLAIF on synthetic reviews: a rating as the reward, no reward model.

Paper: Lee et al. 2023, arXiv:2309.00267: a language model rates each sample from 1 to
  10, its expected rating is the reward of REINFORCE; samples at temperature 0.9.
Command: xpo train direct_rlaif [source=FILE policy=DIR --data.feedback.source.error 0]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, less so the more often
  the ratings are wrong; `eval/reward` is the mean rating.
Departs from the paper: the rater is not a language model but the true reward in whole
  points from 0 to 5, a tenth of them wrong. The baseline is the mean of past rewards,
  not a learned value.
Result: true reward {direct RLAIF | reward} at {direct RLAIF | kl | 2} nats, from {SFT |
  reward.mean}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import noisy_judge
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """As `reinforce`: a point is 0.4 of true reward, so beta 0.25 is its 0.1."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("reinforce", beta=0.25),
    task,
    feedback=Feedback(
      Configured(noisy_judge.scorer, error=0.1), missing_eos=task.missing_eos(1.0)
    ),
    sampling=Sampling(
      completions=1,
      max_completion_tokens=task.max_completion_tokens,
      temperature=0.9,
    ),
    prompts_per_iteration=128,
  )
