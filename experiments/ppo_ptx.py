"""PPO-ptx on synthetic reviews: PPO beside the SFT loss of the texts.

Paper: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, whose gamma is 27.8 on
  pretraining text. Its results, regressions on public tasks undone, cannot be
  reproduced at this size.
Command: xpo train ppo_ptx [gamma=NUMBER source=FILE policy=DIR]
Hardware: 2 CPU cores, minutes.
Expected: the true reward of held-out prompts rises above SFT's, less than `ppo`'s the
  larger gamma is, while the loss of the texts stays where SFT leaves it; no number is
  taken from the paper.
Departs from the paper: the texts are those of supervised fine-tuning, the only ones
  here; gamma was chosen by a trial run and weights a mean over tokens.
Result: true reward {PPO-ptx, gamma 1 | reward} at {PPO-ptx, gamma 1 | kl | 2} nats with
  gamma 1, from {SFT | reward.mean}; three seeds.
"""

import dataclasses

from xpo_jax.config.experiment import AuxLossConfig, Experiment
from xpo_jax.config.factories import ObjectiveConfig
from xpo_jax.studies import task as tasks
from xpo_jax.studies.task import Task


def experiment(
  source: str | None = None, policy: str | None = None, gamma: float = 1.0
) -> Experiment:
  """Two passes of two minibatches over an iteration, each beside a batch of texts."""
  task = Task(source, policy=policy)
  texts = dataclasses.replace(tasks.sft(task).data, steps=None, epochs=1)
  return tasks.on_rollouts(
    ObjectiveConfig("ppo", beta=0.05, whiten_reward=False),
    task,
    minibatches=2,
    ppo_epochs=2,
    aux_losses=(AuxLossConfig(gamma, ObjectiveConfig("sft"), texts),),
  )
