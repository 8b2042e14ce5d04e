"""Dr. GRPO on the embedded world: GRPO without the divisions that bias it.

Paper: Liu et al. 2025, arXiv:2503.20783: no division by a group's deviation or by a
  completion's length, no KL.
Command: xpo train dr_grpo [source=FILE]
Hardware: 2 CPU cores; 75 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's; with nothing that
  ties the policy to the start, its KL is greater than that of `grpo`.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.717 [0.679, 0.752] at 7.03 nats; the start has 0.091 [0.055,
  0.126]. GRPO's policy went 3.43 nats.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """Sums over tokens divided by the longest completion allowed, as the paper's code."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("dr_grpo", length=float(world.longest)),
    world,
    sampling=Sampling(completions=8, max_completion_tokens=world.longest),
    prompts_per_iteration=16,
  )
