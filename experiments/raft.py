"""RAFT on the embedded world: fine-tuning on the best of eight samples.

Paper: Dong et al. 2023, arXiv:2304.06767: the best of 8 to 32 samples a prompt, then
  supervised fine-tuning on these, over and over.
Command: xpo train raft [source=FILE]
Hardware: 2 CPU cores; 59 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's, less than
  `rloo`'s from as many samples, all but one of which it throws away (Ahmadian et al.
  2024, arXiv:2402.14740, Table 1: RLOO above RAFT by 1 to 5 points of win rate).
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.299 [0.256, 0.343] at 0.45 nats; the start has 0.091 [0.055,
  0.126]. At 3e-4 and two passes, one seed, 0.935 [0.926, 0.943] at 20 nats: nothing
  ties RAFT to the start.
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """Eight samples a prompt; nothing ties to the start but small steps."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("raft"),
    world,
    sampling=Sampling(completions=8, max_completion_tokens=world.longest),
    prompts_per_iteration=16,
    optimizer=Optimizer(learning_rate=1e-4, schedule="constant"),
  )
