"""Nash-MD on the embedded world: a judge whose preferences go round in a circle.

Paper: Munos et al. 2023, arXiv:2312.00886: win against a mixture of policy and
  reference, the reference's share 0.125 to 0.375.
Command: xpo train nash_md [source=FILE] [--sampling.opponent.share 0]
Hardware: 2 CPU cores; 80 s of CPU time, 37 s of them the start's.
Expected: the win rate against the start (`eval/reward`) rises above 1/2, and the true
  reward above the start's, for praise of any kind beats none. Which kind wins is for no
  reward to say: at the equilibrium all three are said, each beaten by another.
Departs from the paper: the preference is a rule, not a trained model; beta is 0.05, not
  0.008, for a run of minutes.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.319 [0.273, 0.365] at 0.55 nats; the start has 0.091 [0.055,
  0.126]. Of one seed: win rate against the start 0.63; of the samples 53 % praise in
  the first kind's words (31 % at first), 16 % each in the others', 15 % in none (37 %
  at first): the equilibrium is not reached.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.feedback import rules
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World

# Kinds of praise; the first beats the second, which beats the third, which beats it.
KINDS = (
  r"\b(good|great|superb|charming|brilliant|lovely|fun|funny|clever|honest|strong|joy)\b",
  r"\b(fine|smart|amazing|excellent|perfect|beautiful|wonderful|sweet|fresh|treat)\b",
  r"\b(warm|enjoyable|graceful|elegant|exciting|terrific|pleasant|delightful|hope)\b",
)


def experiment(source: str | None = None) -> Experiment:
  """Four samples a prompt against one of the mixture, a quarter of it the reference."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("nash_md", beta=0.05),
    world,
    feedback=Feedback(
      Configured(rules.cyclic_preference, patterns=KINDS), kind="win_rates"
    ),
    sampling=Sampling(
      completions=4, max_completion_tokens=world.longest, opponent=Opponent(share=0.25)
    ),
  )
