"""DNO on synthetic reviews: margins regressed on win rates, in self-play.

Paper: Rosset et al. 2024, arXiv:2404.03715: rounds of samples ranked by a preference;
  the last round's policy is the reference.
Command: xpo train dno [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises with every round; `eval/reward` is
  the win rate against the start.
Departs from the paper: its exact form, on all pairs of four samples; its practical form
  takes pairs of large margin and a stronger model's completions, of which there are
  none here. The preference is Bradley-Terry of the true reward.
Result: true reward {DNO | reward} at {DNO | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task
from xpo_jax.train import pair_construction


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Four rounds, each of one pass of 16 updates on 96 pairs."""
  task = Task(source, policy=policy)
  judge = Configured(rules.bradley_terry, scorer=task.reward, temperature=0.25)
  return tasks.on_rollouts(
    ObjectiveConfig("dno", beta=0.1),
    task,
    feedback=Feedback(judge, kind="win_rates"),
    sampling=Sampling(
      completions=4,
      max_completion_tokens=task.max_completion_tokens,
      prompts_at_once=64,
    ),
    pair_construction=Configured(pair_construction.all_pairs),
    iterations=4,
    prompts_per_iteration=256,
    minibatches=16,
    ref_update_every=1,
    loop=Loop(log_every=1, eval_every=1),
  )
