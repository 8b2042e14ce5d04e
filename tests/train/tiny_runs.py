"""The smallest model that trains on the world's texts, and an online run of it."""

from xpo_jax.config.data import Prompts
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Rollouts, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
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
ONLINE = Experiment(
  objective=ObjectiveConfig("ppo", beta=0.1),
  data=Rollouts(
    prompts=Prompts("synthetic:30"),
    feedback=Feedback(Configured(rules.matches, pattern="[aeiou]"), missing_eos=0.25),
    sampling=Sampling(
      completions=2, max_completion_tokens=6, temperature=0.8, staleness=1
    ),
    iterations=5,
    prompts_per_iteration=8,
    minibatches=2,
    ppo_epochs=2,
    microbatches=2,
    kl_controller=Configured(
      kl_control.adaptive_kl, beta=0.1, target=1.0, horizon=100.0
    ),
    ref_update_every=2,
  ),
  start=Scratch(MODEL),
  optimizer=Optimizer(learning_rate=1e-2, ema=0.9),
  loop=Loop(log_every=1),
  mesh=MeshShape(data=1),
)
# Nothing but what there must be.
PLAIN = Experiment(
  objective=ObjectiveConfig("rloo"),
  data=Rollouts(
    prompts=Prompts("synthetic:20"),
    feedback=Feedback(Configured(rules.synthetic_reward)),
    sampling=Sampling(completions=2, max_completion_tokens=4),
    prompts_per_iteration=4,
  ),
  start=Scratch(MODEL),
  mesh=MeshShape(data=1),
)
