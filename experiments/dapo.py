"""DAPO on the embedded world: a higher upper clip, every token of a prompt the same.

Paper: Yu et al. 2025, arXiv:2503.14476: 16 samples a prompt, 16 updates for each round
  of samples, no KL.
Command: xpo train dapo [source=FILE]
Hardware: 2 CPU cores; 63 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's; with several
  updates a round the upper clip is reached, and with no KL the policy goes far.
Departs from the paper: 8 samples a prompt, 4 updates; prompts whose rewards agree are
  not asked again until they differ (they add no gradient,
  `rollout/frac_informative_prompts` counts the others); no soft punishment of length,
  the missing-EOS penalty stands in for it.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.727 [0.696, 0.757] at 4.51 nats; the start has 0.091 [0.055,
  0.126]. The clip decided on 0.1 % of the tokens.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """The paper's clips; four minibatches of an iteration."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("dapo"),
    world,
    sampling=Sampling(completions=8, max_completion_tokens=world.longest),
    prompts_per_iteration=32,
    minibatches=4,
    iterations=20,
  )
