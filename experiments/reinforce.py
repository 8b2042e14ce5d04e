"""REINFORCE on the embedded world: one sample a prompt, past rewards as baseline.

Paper: Ahmadian et al. 2024, arXiv:2402.14740, where it is the simplest of the policy
  gradients; its results are of models of billions of parameters.
Command: xpo train reinforce [source=FILE]
Hardware: 2 CPU cores; 77 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's, less than
  `rloo`'s from as many samples, whose baseline is the prompt's own (paper, Table 1:
  REINFORCE with a baseline 6 to 9 points of win rate below RLOO with four samples).
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.617 [0.585, 0.649] at 0.98 nats; the start has 0.091 [0.055,
  0.126]. `rloo` has 0.586 [0.555, 0.617] at 0.91 nats: the claim does not reproduce
  here, the paired difference is 0.031 [0.011, 0.050] the other way; at equal KL there
  is none (`tables/online_frontier.py`).
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """As many samples an iteration as `rloo`, each of another prompt."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("reinforce", beta=0.1),
    world,
    sampling=Sampling(completions=1, max_completion_tokens=world.longest),
    prompts_per_iteration=128,
  )
