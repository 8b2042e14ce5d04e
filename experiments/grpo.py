"""GRPO on the embedded world: rewards in units of their group's deviation.

Paper: Shao et al. 2024 (DeepSeekMath), arXiv:2402.03300: 64 samples a question, one
  update for each round of samples, KL in the loss with beta 0.04.
Command: xpo train grpo [source=FILE]
Hardware: 2 CPU cores; 75 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's; no number of the
  paper, which is of mathematics, can be rebuilt at this size.
Departs from the paper: 8 samples a prompt.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.691 [0.651, 0.725] at 3.43 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """The paper's beta; as many samples an iteration as `rloo`, in groups of eight."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("grpo"),
    world,
    sampling=Sampling(completions=8, max_completion_tokens=world.longest),
    prompts_per_iteration=16,
  )
