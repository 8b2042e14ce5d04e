"""GSPO on the embedded world: ratio and clip of whole completions.

Paper: Zheng et al. 2025, arXiv:2507.18071: four minibatches a round of samples, clips
  of 3e-4 and 4e-4 around a length-normalised ratio, no KL.
Command: xpo train gspo [source=FILE]
Hardware: 2 CPU cores; 63 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's, though more of
  the samples are clipped than with token ratios, as the paper finds.
Departs from the paper: clips of 0.03 and 0.04. A ratio moves by the learning rate, here
  a hundred times that of a large model.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.729 [0.700, 0.757] at 4.56 nats; the start has 0.091 [0.055,
  0.126]. The clip decided on 1.9 % of the completions; DAPO's on 0.1 % of the tokens,
  with wider clips.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """Four minibatches of an iteration, as in the paper."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("gspo", clip_low=0.03, clip_high=0.04),
    world,
    sampling=Sampling(completions=8, max_completion_tokens=world.longest),
    prompts_per_iteration=32,
    minibatches=4,
    iterations=20,
  )
