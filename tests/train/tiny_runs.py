"""The smallest model that trains on the world's texts, and an online run of it."""

from xpo_jax.config.experiment import Loop, MeshShape, ObjectiveConfig, Scratch
from xpo_jax.config.on_policy import (
  Configured,
  Feedback,
  OnlineExperiment,
  Prompts,
  Sampling,
)
from xpo_jax.config.optim import Optimizer
from xpo_jax.feedback import rules
from xpo_jax.models.config import Config
from xpo_jax.ops import kl_control

MODEL = Config(
  vocab=320,
  width=12,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=6,
  mlp_width=16,
  tied=True,
  remat=False,
)
# All that a resume can get wrong: a controller, stale samples, a reference that moves,
# several passes over minibatches of microbatches, a value, an average of weights.
ONLINE = OnlineExperiment(
  ObjectiveConfig("ppo", beta=0.1),
  Prompts("world:30"),
  Scratch(MODEL),
  Feedback(Configured(rules.matches, pattern="[aeiou]"), missing_eos=0.25),
  Sampling(completions=2, max_completion_tokens=6, temperature=0.8, staleness=1),
  iterations=5,
  prompts_per_iteration=8,
  minibatches=2,
  ppo_epochs=2,
  microbatches=2,
  controller=Configured(kl_control.adaptive_kl, beta=0.1, target=1.0, horizon=100.0),
  ref_update_every=2,
  optimizer=Optimizer(learning_rate=1e-2, ema=0.9),
  loop=Loop(log_every=1),
  mesh=MeshShape(data=1),
)
# Nothing but what there must be.
PLAIN = OnlineExperiment(
  ObjectiveConfig("rloo"),
  Prompts("world:20"),
  Scratch(MODEL),
  Feedback(Configured(rules.synthetic_reward)),
  Sampling(completions=2, max_completion_tokens=4),
  prompts_per_iteration=4,
  mesh=MeshShape(data=1),
)
