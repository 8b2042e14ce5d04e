"""PPO-ptx on the embedded world: PPO that goes on modelling the texts it comes from.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, whose gamma is 27.8 on
  pretraining text. Its results, regressions on public tasks repaired, cannot be rebuilt
  at this size.
Command: xpo train ppo_ptx [gamma=NUMBER source=FILE]
Hardware: 2 CPU cores; 103 s of CPU time, the start's included.
Expected: the true reward of held-out prompts rises above the start's, less than `ppo`'s
  the larger gamma is, while the texts stay as likely as the start finds them; no number
  is taken from the paper.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.403 [0.358, 0.444] at 0.30 nats; the start has 0.091 [0.055,
  0.126]. Gamma is 1. Loss of the texts, nats a token: 2.07 over the first ten
  iterations, 2.09 over the last ten.

Departs from the paper: the texts are those of supervised fine-tuning, for the world has
no others; gamma is a trial's choice, of a mean over tokens.
"""

import dataclasses

from xpo_jax.config.experiment import AuxLossConfig, Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None, gamma: str = "1") -> Experiment:
  """Two passes of two minibatches over an iteration, each beside a batch of texts."""
  try:
    weight = float(gamma)
  except ValueError:
    raise ValueError(f"gamma is {gamma!r}; it must be a number > 0") from None
  world = World(source)
  texts = dataclasses.replace(synthetic_world.writer(world).data, steps=None, epochs=1)
  return synthetic_world.run(
    ObjectiveConfig("ppo", beta=0.05, whiten_reward=False),
    world,
    minibatches=2,
    ppo_epochs=2,
    aux_losses=(AuxLossConfig(weight, ObjectiveConfig("sft"), texts),),
  )
