"""ReMax on the embedded world: REINFORCE with the greedy completion as baseline.

Paper: Li et al. 2023, arXiv:2310.10505: one sample and one greedy completion a prompt.
Command: xpo train remax [source=FILE]
Hardware: 2 CPU cores; 83 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's; the paper's
  savings of memory are those of having no value model, which other recipes lack too.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.424 [0.381, 0.466] at 0.61 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """As many completions an iteration as `rloo`, half of them greedy."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("remax", beta=0.1),
    world,
    sampling=Sampling(
      completions=2, max_completion_tokens=world.longest, column0_source="greedy"
    ),
    prompts_per_iteration=64,
  )
