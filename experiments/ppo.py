"""PPO on the embedded world: token-level KL in the reward, a learned value.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, after Ziegler et al. 2019,
  arXiv:1909.08593, from whom the adaptive KL is. No result of theirs can be rebuilt at
  this size.
Command: xpo train ppo [source=FILE]
Hardware: 2 CPU cores; 89 s of CPU time, 37 s of them the start's.
Expected: the true reward of held-out prompts rises above the start's, and the KL of a
  completion moves towards the controller's target; no number is taken from the papers.
Last result: 2026-11-22, three seeds, intervals over prompts and seeds: true reward of
  128 held-out prompts 0.837 [0.823, 0.847] at 2.80 nats; the start has 0.091 [0.055,
  0.126]. The controller's target is 3. The value explains nothing of the returns; nor
  does a linear map fitted on the start's hidden states (held-out R2 -0.01).
"""

from xpo_jax.config.experiment import Experiment
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.ops import kl_control
from xpo_jax.studies import synthetic_world
from xpo_jax.studies.multistage.staged_world import World


def experiment(source: str | None = None) -> Experiment:
  """Two passes of two minibatches over an iteration; KL steered to 3 nats."""
  control = Configured(kl_control.adaptive_kl, beta=0.05, target=3.0, horizon=2000.0)
  return synthetic_world.run(
    ObjectiveConfig("ppo", beta=0.05, whiten_reward=False),
    World(source),
    kl_controller=control,
    minibatches=2,
    ppo_epochs=2,
  )
