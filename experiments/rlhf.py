"""RLHF in three stages as one value: SFT, a reward model, PPO, on data of your own.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, Sec. 3: supervised
  fine-tuning, a reward model from its weights, PPO against it with a critic that starts
  as the reward model.
Command: xpo train rlhf prompts=FILE pairs=FILE [policy=DIR] [method=rloo]
  prompts: JSON lines with prompts (or pairs, whose prompts are taken); pairs: JSON
  lines with `chosen` and `rejected`; policy: a Hugging Face directory to start from,
  else a small model from scratch; method: ppo, rloo or grpo.
Hardware: 2 CPU cores, minutes with a small model from scratch.
Expected: the reward model's reward of held-out prompts rises above the SFT policy's.
Departs from the paper: pairs, not lists of 4 to 9 (`instructgpt` ranks lists); no
  pretraining mix (`ppo_ptx` has it).
Result: not a paper's number; see the report of the run.
"""

from xpo_jax.config.data import Data, Evaluation, Prompts
from xpo_jax.config.experiment import (
  Experiment,
  Loop,
  MeshShape,
  Pretrained,
  Rollouts,
  Scratch,
  Stage,
)
from xpo_jax.config.factories import Configured, ObjectiveConfig
from xpo_jax.config.optim import Optimizer
from xpo_jax.config.sampling import Feedback, Sampling
from xpo_jax.data.tokenise import Limits
from xpo_jax.feedback import reward_model
from xpo_jax.models.config import Config

SMALL = Config(
  vocab=2048,
  width=96,
  layers=2,
  heads=4,
  kv_heads=4,
  head_dim=24,
  mlp_width=256,
  positions=1024,
  tied=True,
)
# The same prompts are held out of all three stages.
HELD_OUT = Evaluation(share=0.1)
# Objective, whether it has a critic, updates of an iteration (RLOO has no ratio).
METHODS = {
  "ppo": (ObjectiveConfig("ppo", beta=0.05, whiten_reward=False), True, 2),
  "rloo": (ObjectiveConfig("rloo", beta=0.05), False, 1),
  "grpo": (ObjectiveConfig("grpo", beta=0.04), False, 2),
}


def experiment(
  prompts: str, pairs: str, policy: str | None = None, method: str = "ppo"
) -> Experiment:
  """SFT on the chosen completions, a Bradley-Terry reward model, then PPO."""
  if method not in METHODS:
    raise ValueError(f"method={method}: allowed are {', '.join(METHODS)}")
  limits = Limits(prompt=128, completion=48, long_prompt="truncate")
  data = Data(pairs, limits=limits, bad_rows="drop", row_length=256, rows_per_step=8)
  mesh = MeshShape(data=1)
  sft = Experiment(
    objective=ObjectiveConfig("sft"),
    data=data,
    start=Scratch(SMALL) if policy is None else Pretrained(policy),
    optimizer=Optimizer(
      learning_rate=1e-3 if policy is None else 1e-5, warmup_steps=10
    ),
    mesh=mesh,
    evaluation=HELD_OUT,
  )
  reward = Experiment(
    objective=ObjectiveConfig("bradley_terry"),
    data=data,
    start=Stage(sft),
    optimizer=Optimizer(
      learning_rate=3e-4 if policy is None else 1e-5, warmup_steps=10
    ),
    mesh=mesh,
    evaluation=HELD_OUT,
  )
  objective, has_critic, updates = METHODS[method]
  return Experiment(
    objective=objective,
    data=Rollouts(
      prompts=Prompts(
        prompts,
        limits=Limits(prompt=128, long_prompt="truncate"),
        bad_rows="drop",
      ),
      feedback=Feedback(
        Configured(reward_model.scorer, directory=Stage(reward)), missing_eos=1.0
      ),
      sampling=Sampling(completions=4, max_completion_tokens=48),
      iterations=40,
      prompts_per_iteration=16,
      minibatches=updates,
      critic_init=Stage(reward) if has_critic else None,
    ),
    start=Stage(sft),
    optimizer=Optimizer(
      learning_rate=1e-4 if policy is None else 1e-6, schedule="constant"
    ),
    loop=Loop(log_every=5, eval_every=20),
    mesh=mesh,
    evaluation=HELD_OUT,
  )
