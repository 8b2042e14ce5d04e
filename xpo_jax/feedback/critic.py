"""A critic of its own: values that start as a reward model's (InstructGPT).

Without one, the value is a scalar head on the policy's own hidden states, 0 at first. A
critic is a decoder apart, of any size, trained with the policy by the same optimiser.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from xpo_jax.data import audit
from xpo_jax.feedback import reward_model
from xpo_jax.models import transformer
from xpo_jax.models.config import Config
from xpo_jax.models.transformer import Model
from xpo_jax.ops import token_stats
from xpo_jax.types import Array, Objective, Params, TokenStat

CRITIC = "critic"  # the role of a decoder of values that is not the policy
_HEAD = "policy.value"


def _value(roles: Mapping[str, Array], target_C: Array) -> Array:
  del target_C
  return roles[f"{CRITIC}.value"]


VALUE = TokenStat(token_stats.VALUE.field, (f"{CRITIC}.value",), _value)


class Critic(NamedTuple):
  """A critic before the first update.

  Attributes:
    model: its decoder.
    params: `{"lm": ..., "value": ...}`.
  """

  model: Model
  params: Params


def check_objective(objective: Objective, critic_init: Any) -> None:
  """Refuses a critic for an objective that reads no values.

  Raises:
    ValueError: it reads none.
  """
  if not any(_HEAD in stat.roles for stat in objective.stats):
    raise ValueError(
      f"Rollouts.critic_init is {critic_init!r}, but {objective.name} reads no value; "
      "leave it out"
    )


def check(directory: str | Path) -> None:
  """Refuses what is no reward model, before a weight is read.

  Raises:
    ValueError: no reward model there.
  """
  reward_model.read_description(directory)


def load(directory: str | Path, tokenizer: Any, like: Config) -> Critic:
  """The critic that a reward model makes.

  Gain and bias of its rewards go into the head: the value before a token is the reward
  of the completion up to there.

  Args:
    directory: see `reward_model.load`.
    tokenizer: of the policy; the reward model's may have another chat template.
    like: of the policy: its dtype and rematerialisation.

  Raises:
    ValueError: no reward model there, or one of another tokenizer.
  """
  held = reward_model.load(directory, compute_dtype=like.compute_dtype)
  mine, its = map(audit.tokens_digest, (tokenizer, held.tokenizer))
  if mine != its:
    raise ValueError(
      f"critic_init {directory} is a reward model of another tokenizer than the "
      "policy's: its values would be of other tokens; train one on the policy's start"
    )
  gain, bias = (jnp.float32(x) for x in held.affine)
  head = held.params["value"]
  value = {"kernel_D": gain * head["kernel_D"], "bias": gain * head["bias"] + bias}
  config = dataclasses.replace(held.model.config, remat=like.remat)
  model = transformer.model(config)
  return Critic(model, {"lm": held.params["lm"], "value": value})


def judged_by(build: Callable[..., Objective]) -> Callable[..., Objective]:
  """The objective with its values read from the critic."""

  def made(**traced: Any) -> Objective:
    objective = build(**traced)
    stats = {VALUE if _HEAD in stat.roles else stat for stat in objective.stats}
    return objective._replace(stats=frozenset(stats))

  return made
