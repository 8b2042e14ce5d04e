"""Objectives on the exact bandit: pairs, single completions, lists, stages.

Each function is a cell of a table (`studies.atlas`): a seed draws task and data, the
policy is trained with Adam on all data at once, and reward, KL, length and entropy are
expectations over all completions. A policy is linear in shared features and measured on
held-out prompts, or a table with a number for each completion.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import programs
from xpo_jax.testing import bandit
from xpo_jax.testing.bandit import Bandit, BanditPairs
from xpo_jax.types import Array

PROMPTS, COMPLETIONS, FEATURES = 64, 12, 16
ACTIONS = 3  # completions of the one prompt of `minibatches`
# Data of a table's own pairs; `data` of a cell replaces entries.
DATA = {"temperature": 0.5, "flipped": 0.0, "length_bias": 0.0}


def world(key: Array, tabular: bool) -> Bandit:
  """A random task; a tabular policy has a parameter for each completion."""
  if not tabular:
    return bandit.make(key, PROMPTS, COMPLETIONS, FEATURES)
  return with_table(bandit.make(key, PROMPTS // 4, COMPLETIONS, FEATURES))


def with_table(task: Bandit) -> Bandit:
  """The task under a policy with a parameter for each completion."""
  size = task.reward_XY.size
  return task._replace(feature_XYD=jnp.eye(size).reshape(*task.reward_XY.shape, size))


def pairs(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  count: int = 1000,
  tabular: bool = False,
  steps: int = 300,
  learning_rate: float = 0.03,
  data: Mapping[str, float] | None = None,
) -> dict[str, Array]:
  """Trains on labelled pairs of completions.

  Args:
    seed: of task, pairs and the objective's draws.
    objective: of layout PAIR, or a demonstration's; on sums.
    hparams: of the objective.
    count: pairs.
    tabular: a table, measured on all prompts; else linear, trained on half of them and
      measured on the others.
    steps: of Adam.
    learning_rate: of Adam.
    data: entries in place of `DATA`'s: temperature, flipped and length_bias of
      `bandit.draw`.

  Returns:
    `measures`; chosen and rejected, mean changes of the log-probability of the pairs'
    completions, nats.
  """
  static, traced = programs.split(hparams)
  program = _pairs(objectives.get(objective), static, count, tabular, steps)
  return program(jax.random.key(seed), traced, DATA | dict(data or {}), learning_rate)


@functools.cache
def _pairs(make, static, count, tabular, steps):
  @jax.jit
  def program(key, traced, data, learning_rate):
    keys = jax.random.split(key, 3)
    task = world(keys[0], tabular)
    seen = None if tabular else PROMPTS // 2
    drawn = bandit.draw(task, count, keys[1], prompts=seen, **data)
    theta = bandit.fit(
      programs.build(make, static, traced),
      task,
      drawn,
      keys[2],
      steps=steps,
      learning_rate=learning_rate,
    )
    return measures(task, theta, 0 if tabular else seen) | _change(task, theta, drawn)

  return program


def measures(task: Bandit, theta_D: Array, first: int) -> dict[str, Array]:
  """`bandit.measure` as metrics on prompts from `first`, and the root of KL, of which
  reward is nearly a linear function."""
  return _named(bandit.measure(task, theta_D, first))


def _named(exact: bandit.Measures) -> dict[str, Array]:
  return exact._asdict() | {"root_kl": jnp.sqrt(exact.kl)}


def _change(task: Bandit, theta_D: Array, drawn: BanditPairs) -> dict[str, Array]:
  at = (drawn.prompt_B[:, None], drawn.completion_B2)
  change_2 = (bandit.logp(task, theta_D) - task.ref_logp_XY)[at].mean(0)
  return {"chosen": change_2[0], "rejected": change_2[1]}


def optimum(seed: int, *, kl: float, tabular: bool = False) -> dict[str, Array]:
  """The policy of most reward at a KL, ref exp(reward / beta) / Z on held-out prompts.

  Args:
    seed: of the task, as of `pairs`.
    kl: nats, mean over prompts.
    tabular: as of `pairs`.
  """
  return _optimum(tabular)(jax.random.key(seed), kl)


@functools.cache
def _optimum(tabular):
  @jax.jit
  def program(key, kl):
    task = world(jax.random.split(key, 3)[0], tabular)
    first = 0 if tabular else PROMPTS // 2

    def at(strength):
      return bandit.measure_tilt(task, strength * task.reward_XY, first)

    return _named(measured_at(kl, at))

  return program


def measured_at(
  kl: float | Array, measured: Callable[[Array], bandit.Measures]
) -> bandit.Measures:
  """The measures of a family of policies at a KL, by bisection.

  Args:
    kl: nats.
    measured: strength from 0 to 100 -> measures, of which the KL rises with it.
  """

  def halve(_, ends):
    middle = ends.mean()
    below = measured(middle).kl < kl
    return jnp.where(below, ends.at[0].set(middle), ends.at[1].set(middle))

  ends = jax.lax.fori_loop(0, 40, halve, jnp.array([0.0, 100.0]))
  return measured(ends.mean())


def stages(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  count: int = 1000,
  steps: int = 300,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Trains on the halves of the pairs in turn, each policy the next one's reference.

  A log-linear policy's log-ratio to the stage before depends on that stage's pairs
  alone: whatever is easier first has no effect here.

  Args:
    seed: as of `pairs`, with the same task and pairs.
    objective: of layout PAIR, on sums.
    hparams: of the objective.
    count: pairs, of both stages together.
    steps: of Adam, of both stages together.
    learning_rate: of Adam.
  """
  static, traced = programs.split(hparams)
  program = _stages(objectives.get(objective), static, count, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _stages(make, static, count, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    keys = jax.random.split(key, 3)
    task = world(keys[0], False)
    seen = PROMPTS // 2
    drawn = bandit.draw(task, count, keys[1], prompts=seen, **DATA)
    theta, reference = jnp.zeros(FEATURES), task
    for half in (slice(count // 2), slice(count // 2, count)):
      stage = BanditPairs(drawn.prompt_B[half], drawn.completion_B2[half])
      # `fit` starts at its reference: the policy of the stage before.
      theta = theta + bandit.fit(
        programs.build(make, static, traced),
        reference,
        stage,
        keys[2],
        steps=steps // 2,
        learning_rate=learning_rate,
      )
      reference = task._replace(ref_logp_XY=bandit.logp(task, theta))
    return measures(task, theta, seen)

  return program


def minibatches(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  pairs: list[list[int]],
  batch: int = 9,
  steps: int = 18_000,
  learning_rate: float = 0.01,
) -> dict[str, Array]:
  """One prompt, given pairs, uniform reference: Adam on random batches of the pairs.

  Args:
    seed: of the batches, drawn with replacement.
    objective: of layout PAIR, on sums.
    hparams: of the objective.
    pairs: [winner, loser] of each pair.
    batch: pairs of an update.
    steps: updates.
    learning_rate: of Adam.

  Returns:
    p0, p1, p2: probability of each action.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _minibatches(make, static, batch, steps)
  return program(jax.random.key(seed), traced, jnp.array(pairs), learning_rate)


@functools.cache
def _minibatches(make, static, batch, steps):
  @jax.jit
  def program(key, traced, pairs_P2, learning_rate):
    objective = programs.build(make, static, traced)
    ref_Y = jnp.full(ACTIONS, -jnp.log(ACTIONS))

    def view(theta_Y, key):
      at_B2 = pairs_P2[jax.random.randint(key, (batch,), 0, len(pairs_P2))]
      logp_Y = jax.nn.log_softmax(theta_Y)
      return scored.from_sequence_logps(
        logp_Y[at_B2], jnp.ones(at_B2.shape), ref_Y[at_B2]
      )

    theta_Y = bandit.descend(
      objective,
      view,
      jnp.zeros(ACTIONS),
      key,
      steps=steps,
      learning_rate=learning_rate,
    )
    p_Y = jax.nn.softmax(theta_Y)
    return {f"p{i}": p_Y[i] for i in range(ACTIONS)}

  return program
