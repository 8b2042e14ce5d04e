"""Iterative CRINGE on the embedded world: label what the policy says, train again.

Paper: Adolphs et al. 2022, arXiv:2211.05826, whose policy is labelled and trained in
  turn; Xu et al. 2023, arXiv:2312.16682, for pairs too.
Command: xpo train iterative_cringe [source=FILE]
Hardware: 2 CPU cores; 62 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises with every round.
Departs from the papers: the sign of the true reward is the label, in place of a
  classifier's; each round on its own samples alone, with no human labels beside them;
  alpha is 0.1, not 1.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.438 [0.396, 0.479] at 2.18 nats; the start has 0.091 [0.055,
  0.126]. With alpha 1, one seed, 0.405 [0.364, 0.445] at 12.3 nats: pushing down every
  token of what is not desirable drifts far for what it gains.
"""

from xpo_jax.config.experiment import Experiment, Loop
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.sampling import Sampling
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World
from xpo_jax.train import pair_construction


def experiment(source: str | None = None) -> Experiment:
  """Four rounds, each of one pass of 24 updates."""
  world = World(source)
  return synthetic_world.run(
    ObjectiveConfig("cringe", alpha=0.1),
    world,
    sampling=Sampling(
      completions=4, max_completion_tokens=world.longest, prompts_at_once=64
    ),
    pair_construction=Configured(pair_construction.rated_by_threshold, threshold=0.0),
    iterations=4,
    prompts_per_iteration=384,
    minibatches=24,
    loop=Loop(log_every=1, eval_every=1),
  )
