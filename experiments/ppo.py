"""PPO on the embedded world: token-level KL in the reward, a learned value.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, after Ziegler et al. 2019,
  arXiv:1909.08593, from whom the adaptive KL is. No result of theirs can be rebuilt at
  this size.
Command: xpo train ppo [source=FILE]
Hardware: 2 CPU cores, two minutes beside another job.
Expected: the true reward of held-out prompts rises above the start's, and the KL of a
  completion moves towards the controller's target; no number is taken from the papers.
Last result: 2026-11-22, one seed, no interval: true reward of 64 held-out prompts 0.60,
  0.80, 0.82 after 20, 40, 60 iterations, the last at 2.6 nats. That was from an earlier
  start (4,000 texts, 300 steps), whose samples on the first training prompts have 0.12.
"""

from xpo_jax import controllers
from xpo_jax.recipes import online_world
from xpo_jax.recipes.staged_world import World
from xpo_jax.train.experiment import Use
from xpo_jax.train.online_experiment import Call, OnlineExperiment


def experiment(source: str | None = None) -> OnlineExperiment:
  """Two passes of two minibatches over an iteration; KL steered to 3 nats."""
  control = Call(controllers.adaptive_kl, beta=0.05, target=3.0, horizon=2000.0)
  return online_world.run(
    Use("ppo", beta=0.05, whiten_reward=False),
    World(source),
    controller=control,
    minibatches=2,
    inner_epochs=2,
  )
