# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # RL on your reward
#
# A reward is a function from prompts and completions to numbers. Here RLOO trains a
# policy on one, from samples of its own. The policy is a small model that first learns
# to write film reviews (SFT); `Pretrained("DIRECTORY")` in its place starts from a
# model of yours, and `ObjectiveConfig("grpo")` takes GRPO instead.

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from xpo_jax.config.data import Data, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  Rollouts,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.evaluation import rollout_history
from xpo_jax.feedback import reward_functions
from xpo_jax.models.config import Config
from xpo_jax.train import loop, metrics, run_directory

folder = Path(tempfile.mkdtemp(prefix="xpo_"))
one_device = MeshShape(data=1)

# %% [markdown]
# ## A reward
#
# It is called with lists, and returns a number for each completion. A parameter of
# another name than `prompts` and `completions` is a column of the records, such as
# `answer`.


# %%
def contrast(completions):
  """1 for a completion that contrasts two things, as in "strong, but slow"."""
  return [float(" but " in text) for text in completions]


contrast([" a delight.", " strong, but the middle was slow."])

# %% [markdown]
# ## The start
#
# Reviews are the package's synthetic ones. A `Stage` is a run whose weights another
# starts from; it is trained first, in the directory of that run.

# %%
small = Config(
  vocab=320,
  width=48,
  layers=1,
  heads=2,
  kv_heads=2,
  head_dim=24,
  mlp_width=96,
  remat="none",
)
sft = Experiment(
  ObjectiveConfig("sft"),
  Data("synthetic:2000", rows_per_step=16, row_length=128, epochs=5),
  Scratch(small),
  Optimizer(learning_rate=2e-2),
  mesh=one_device,
)

# %% [markdown]
# ## RLOO
#
# Each iteration samples four completions of each of 16 prompts; a completion's
# advantage is its reward above the mean of the other three. In a shell:
# `xpo train rloo --model DIR --prompts FILE --reward my_rewards:contrast`, with the
# function in my_rewards.py.

# %%
experiment = Experiment(
  ObjectiveConfig("rloo", beta=0.05),
  Rollouts(
    Prompts("synthetic:200"),
    Feedback(Configured(reward_functions.named, reward_function="__main__:contrast")),
    Sampling(completions=4, max_completion_tokens=16),
    iterations=20,
    prompts_per_iteration=16,
  ),
  Stage(sft),
  Optimizer(learning_rate=5e-3, schedule="constant"),
  Loop(log_every=1),
  one_device,
)
run = folder / "run"
result = loop.train(experiment, run, say=lambda _: None)

# %% [markdown]
# ## Reward and KL
#
# The KL to the start is what the reward is paid for with; `beta` weighs it.

# %%
lines = metrics.read(run)
iterations = [line["step"] for line in lines]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
left.plot(iterations, [line["rollout/reward"] for line in lines])
left.set(xlabel="iteration", ylabel="reward of the samples", ylim=(0, 1))
right.plot(iterations, [line["rollout/kl"] for line in lines])
_ = right.set(xlabel="iteration", ylabel="KL to the start, nats a completion")

# %% [markdown]
# ## Samples
#
# Every sample is kept, with its reward: those of the first iteration, which the start
# wrote, and those of the last. Look at them: a rising reward may be met in a way that
# was not meant.

# %%
samples = rollout_history.read(run / run_directory.ROLLOUTS, 2)
for number, drawn in samples.items():
  print(f"iteration {number}: mean reward {np.nanmean(drawn.reward_BK):.2f}")
  for prompt, texts, reward in zip(
    drawn.prompts[:4], drawn.texts_BK, drawn.reward_BK, strict=False
  ):
    print(f"  {reward[0]:.0f}  {prompt}|{texts[0]}")
