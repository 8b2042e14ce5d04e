"""Nash-MD on synthetic reviews: a preference that is a cycle of three kinds of praise.

Paper: Munos et al. 2023, arXiv:2312.00886: win against a mixture of policy and
  reference, the reference's share 0.125 to 0.375.
Command: xpo train nash_md [source=FILE policy=DIR --data.sampling.opponent.share 0]
Hardware: 2 CPU cores, minutes.
Expected: the win rate against the start (`eval/reward`) rises above 1/2, and the true
  reward above SFT's, because praise of any kind beats none. No reward explains which
  kind wins: at the equilibrium the policy mixes all three.
Departs from the paper: the preference is a rule, not a trained model; beta is 0.05, not
  0.008, for a run of minutes.
Result: true reward {Nash-MD | reward} at {Nash-MD | kl | 2} nats, from {SFT |
  reward.mean}; three seeds.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task

# Kinds of praise: the first beats the second, the second the third, the third the
# first.
KINDS = (
  r"\b(good|great|superb|charming|brilliant|lovely|fun|funny|clever|honest|strong|joy)\b",
  r"\b(fine|smart|amazing|excellent|perfect|beautiful|wonderful|sweet|fresh|treat)\b",
  r"\b(warm|enjoyable|graceful|elegant|exciting|terrific|pleasant|delightful|hope)\b",
)


def experiment(source: str | None = None, policy: str | None = None) -> Experiment:
  """Four samples of each prompt against one of the mixture, the reference's share a
  quarter."""
  task = Task(source, policy=policy)
  return tasks.on_rollouts(
    ObjectiveConfig("nash_md", beta=0.05),
    task,
    feedback=Feedback(
      Configured(rules.cyclic_preference, patterns=KINDS), kind="win_rates"
    ),
    sampling=Sampling(
      completions=4,
      max_completion_tokens=task.max_completion_tokens,
      opponent=Opponent(share=0.25),
    ),
  )
