"""XPO on the embedded world: online DPO that is paid for leaving the reference.

Paper: Xie et al. 2024, arXiv:2405.21046: a sample of the policy against a sample of the
  reference, and a bonus for making the latter less likely.
Command: xpo train exploratory_dpo [source=FILE] [--objective.alpha 0]
Hardware: 2 CPU cores; 77 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's. The bonus matters
  where the start seldom says what is best; this start says good words half the time.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.581 [0.549, 0.612] at 3.81 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """One sample of the reference and one of the policy for each prompt."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("exploratory_dpo", beta=0.1, alpha=1e-5),
    world,
    sampling=Sampling(
      completions=2, max_completion_tokens=world.longest, column0_source="reference"
    ),
    prompts_per_iteration=64,
  )
