"""The smallest model that trains on synthetic reviews, and runs of it."""

import dataclasses

import numpy as np

from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import Experiment, Loop, MeshShape, Rollouts, Scratch
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Opponent, Sampling
from xpo_jax.feedback import protocol, rules
from xpo_jax.models.config import Config
from xpo_jax.models.lora import Adapter
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
  remat="none",
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


def cyclic():
  """Rock, paper, scissors: the length modulo 3 wins over the one before it."""

  def preference(prompts, first, second):
    del prompts
    ahead = [(len(a) - len(b)) % 3 for a, b in zip(first, second, strict=True)]
    return protocol.Scores(np.array([0.5, 1.0, 0.0])[ahead])

  return preference


# Nash-MD: win rates against an opponent, judged on held-out prompts too.
NASH = Experiment(
  objective=ObjectiveConfig("nash_md", beta=0.1),
  data=Rollouts(
    prompts=Prompts("synthetic:30"),
    feedback=Feedback(Configured(cyclic), kind="win_rates"),
    sampling=Sampling(
      completions=2, max_completion_tokens=6, opponent=Opponent(0.25, completions=3)
    ),
    iterations=2,
    prompts_per_iteration=6,
  ),
  start=Scratch(MODEL),
  optimizer=Optimizer(learning_rate=1e-2),
  loop=Loop(log_every=1, eval_every=1),
  mesh=MeshShape(data=1),
  evaluation=Evaluation(share=0.2),
)
# Adapters on records; the data are those of the fixture `datasets`.
ADAPTED = Experiment(
  ObjectiveConfig("dpo"),
  Data("pairs", rows_per_step=4, microbatches=2, row_length=192, epochs=2, steps=6),
  Scratch(dataclasses.replace(MODEL, layers=2)),
  Optimizer(learning_rate=1e-2, weight_decay=0.1, ema=0.9),
  Loop(log_every=1, checkpoint_every=2),
  MeshShape(data=1),
  adapter=Adapter(rank=2, alpha=4.0, targets="query|value|up", dora=True),
)
