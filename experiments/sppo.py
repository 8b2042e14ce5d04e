"""SPPO on synthetic reviews: log-ratios regressed on win rates, in self-play.

Paper: Wu et al. 2024, arXiv:2405.00675: three rounds, five samples of each prompt, the
  best and the worst by win rate; the last round's policy is the reference.
Command: xpo train sppo [source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises with every round; `eval/reward` is
  the win rate against the start.
Departs from the paper: eta is 5, not 1000, whose target of hundreds of nats no run of
  this length comes near; the preference is Bradley-Terry of the true reward in place
  of a trained one (the paper's is computed from scores too).
Result: true reward {SPPO | reward} at {SPPO | kl | 2} nats, from {SFT | reward.mean};
  three seeds.
"""

from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Four rounds, each of two passes of 8 updates."""
  task = Task(source, policy=policy)
  judge = Configured(rules.bradley_terry, scorer=task.reward, temperature=0.25)
  return tasks.on_rollouts(
    ObjectiveConfig("sppo", beta=0.2),
    task,
    feedback=Feedback(judge, kind="win_rates"),
    sampling=Sampling(
      completions=5,
      max_completion_tokens=task.max_completion_tokens,
      prompts_at_once=64,
    ),
    iterations=4,
    prompts_per_iteration=256,
    minibatches=8,
    ppo_epochs=2,
    ref_update_every=1,
    loop=Loop(log_every=1, eval_every=2),
  )
