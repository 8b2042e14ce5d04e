"""RLOO on the embedded world: REINFORCE with the other samples as baseline.

Paper: Ahmadian et al. 2024, arXiv:2402.14740. Its results are of language models of
  billions of parameters; nothing of them can be rebuilt at this size.
Command: xpo train rloo [source=FILE]
Hardware: 2 CPU cores, one and a half minutes.
Expected: the true reward of held-out prompts rises above the start's; no number is
  taken from the paper.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.586 [0.555, 0.617] at 0.91 nats; the start has 0.091 [0.055,
  0.126].
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """Four samples a prompt, one update an iteration, beta of the paper's HH runs."""
  return synthetic_world.run(ObjectiveConfig("rloo", beta=0.1), World(source))
