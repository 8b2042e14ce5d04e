"""Single completions, lists and undesired completions of the exact bandit.

As `bandits`, each function is a cell: data other than pairs, the same measures.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives, scored
from xpo_jax.ops import token_stats
from xpo_jax.studies.exact import bandits, paths, programs
from xpo_jax.testing import bandit
from xpo_jax.types import Array

POINTS = 60  # of a path of `unlearning`
CAPACITY = bandits.FEATURES // 2  # features that the policy of `lists` sees
FORGET = 8  # prompts


def thumbs(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  kept: float = 1.0,
  count: int = 2000,
  steps: int = 300,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Trains a tabular policy on single completions with a thumb up or down.

  Completions are drawn uniformly, whatever the reference; a thumb follows the
  completion's reward by a Bernoulli variable.

  Args:
    seed: of task and data.
    objective: of layout RATED_MISMATCHED, on sums.
    hparams: of the objective.
    kept: share of the desirable completions that are kept.
    count: completions before that.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    `bandits.measures`.
  """
  static, traced = programs.split(hparams)
  program = _thumbs(objectives.get(objective), static, count, steps)
  return program(jax.random.key(seed), traced, kept, learning_rate)


@functools.cache
def _thumbs(make, static, count, steps):
  @jax.jit
  def program(key, traced, kept, learning_rate):
    keys = jax.random.split(key, 6)
    task = bandits.world(keys[0], True)
    prompts, completions = task.reward_XY.shape
    prompt_B1 = jax.random.randint(keys[1], (count, 1), 0, prompts)
    first_B = jax.random.randint(keys[2], (count,), 0, completions)
    # Column 1: a completion of another prompt, for the reference point.
    at = (prompt_B1, jnp.stack([first_B, jnp.roll(first_B, 1)], 1))
    chance_B = jax.nn.sigmoid(2 * task.reward_XY[at][:, 0])
    up_B = jax.random.bernoulli(keys[3], chance_B)
    keep_B = ~up_B | jax.random.bernoulli(keys[4], kept, (count,))

    def view(theta, _):
      return scored.from_sequence_logps(
        bandit.logp(task, theta)[at],
        task.length_XY[at],
        task.ref_logp_XY[at],
        desirable_BK=jnp.stack([up_B, up_B], 1).astype(jnp.float32),
        weight_B=keep_B.astype(jnp.float32),
      )

    theta = bandit.descend(
      programs.build(make, static, traced),
      view,
      jnp.zeros(task.reward_XY.size),
      keys[5],
      steps=steps,
      learning_rate=learning_rate,
    )
    return bandits.measures(task, theta, 0)

  return program


def regression(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  value: bool = True,
  steps: int = 1500,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Fits a tabular policy and value to the rewards of all completions, each once.

  Args:
    seed: of the task.
    objective: `dro` or of its columns; its `beta` defines the optimum.
    hparams: of the objective.
    value: learn a value of each prompt; False: 0.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    distance: total variation to ref exp(reward / beta) / Z, mean over prompts.
    value_error: mean absolute difference of the value from beta log E_ref
      exp(reward / beta).
  """
  static, traced = programs.split(hparams)
  program = _regression(objectives.get(objective), static, value, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _regression(make, static, value, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    task = bandits.world(key, True)
    shape = task.reward_XY.shape
    rows = (-1, 1, 1)

    def view(params, _):
      theta, value_X = params
      value_XY = jnp.broadcast_to(value_X[:, None], shape) * float(value)
      logp_B11 = bandit.logp(task, theta).reshape(rows)
      return scored.from_token_logps(
        logp_B11,
        jnp.ones_like(logp_B11),
        task.ref_logp_XY.reshape(rows),
        value_BKT=value_XY.reshape(rows),
        reward_BK=task.reward_XY.reshape(-1, 1),
      )

    start = (jnp.zeros(task.reward_XY.size), jnp.zeros(shape[0]))
    theta, value_X = bandit.descend(
      programs.build(make, static, traced),
      view,
      start,
      key,
      steps=steps,
      learning_rate=learning_rate,
    )
    tilted_XY = task.ref_logp_XY + task.reward_XY / traced["beta"]
    best_XY = jax.nn.softmax(tilted_XY)
    true_X = traced["beta"] * jax.nn.logsumexp(tilted_XY, axis=1)
    policy_XY = jnp.exp(bandit.logp(task, theta))
    return {
      "distance": jnp.abs(policy_XY - best_XY).sum(1).mean() / 2,
      "value_error": jnp.abs(value_X * float(value) - true_X).mean(),
    }

  return program


def lists(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  size: int,
  count: int = 300,
  steps: int = 300,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Trains a policy that sees half of the reward's features on lists with graded
  labels.

  A label is sigma(reward / 0.5 + noise), of one judgement each.

  Args:
    seed: of task and lists.
    objective: of layout RANKED, or PAIR where `size` is 2 (the better one first).
    hparams: of the objective.
    size: completions of a list.
    count: lists.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    `bandits.measures` on held-out prompts.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _lists(make, static, size, count, steps)
  return program(jax.random.key(seed), traced, learning_rate)


@functools.cache
def _lists(make, static, size, count, steps):
  @jax.jit
  def program(key, traced, learning_rate):
    keys = jax.random.split(key, 5)
    task = bandits.world(keys[0], False)
    task = task._replace(feature_XYD=task.feature_XYD[..., :CAPACITY])
    seen, completions = bandits.PROMPTS // 2, task.reward_XY.shape[1]
    prompt_B1 = jax.random.randint(keys[1], (count, 1), 0, seen)
    order_BY = jax.random.uniform(keys[2], (count, completions)).argsort(1)
    chosen_BK = order_BY[:, :size]
    noise_BK = jax.random.logistic(keys[3], (count, completions))[:, :size]
    label_BK = jax.nn.sigmoid(2 * task.reward_XY[prompt_B1, chosen_BK] + noise_BK)
    best_BK = jnp.argsort(-label_BK, axis=1)
    label_BK, chosen_BK = (
      jnp.take_along_axis(x, best_BK, 1) for x in (label_BK, chosen_BK)
    )
    at = (prompt_B1, chosen_BK)

    def view(theta, _):
      return scored.from_sequence_logps(
        bandit.logp(task, theta)[at],
        task.length_XY[at],
        task.ref_logp_XY[at],
        reward_BK=label_BK,
      )

    theta = bandit.descend(
      programs.build(make, static, traced),
      view,
      jnp.zeros(CAPACITY),
      keys[4],
      steps=steps,
      learning_rate=learning_rate,
    )
    return bandits.measures(task, theta, seen)

  return program


def unlearning(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  sign: float = 1.0,
  iterations: int = 1200,
  learning_rate: float = 0.5,
) -> dict[str, Array]:
  """Forgets the likeliest completions of the first prompts by gradient descent.

  The policy is linear in features that all prompts share, so that forgetting some
  moves the others.

  Args:
    seed: of the task.
    objective: of layout RATED or DEMO, on sums.
    hparams: of the objective.
    sign: of its loss; -1 ascends.
    iterations: updates.
    learning_rate: of gradient descent.

  Returns:
    step: updates done, `paths.ends(iterations, POINTS)`; at each of them
    distance: norm of the change of the parameters; forgotten: mean log-probability of
    the completions to forget, nats; kl: KL(policy || reference) on the other prompts,
    nats; kept: fraction of them whose likeliest completion is the reference's.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _unlearning(make, static, iterations)
  return program(jax.random.key(seed), traced, sign, learning_rate)


@functools.cache
def _unlearning(make, static, iterations):
  @jax.jit
  def program(key, traced, sign, learning_rate):
    task = bandits.world(key, False)
    row_X = jnp.arange(FORGET)
    at = (row_X[:, None], task.ref_logp_XY[:FORGET].argmax(1)[:, None])

    def view(theta, _):
      return scored.from_sequence_logps(
        bandit.logp(task, theta)[at],
        task.length_XY[at],
        task.ref_logp_XY[at],
        desirable_BK=jnp.zeros((FORGET, 1)),
      )

    def measure(theta):
      logp_XY = bandit.logp(task, theta)
      rest_XY, ref_XY = logp_XY[FORGET:], task.ref_logp_XY[FORGET:]
      return {
        "distance": jnp.linalg.norm(theta),
        "forgotten": logp_XY[at].mean(),
        "kl": token_stats.kl(rest_XY, ref_XY).mean(),
        "kept": (rest_XY.argmax(1) == ref_XY.argmax(1)).mean(),
      }

    return paths.descend(
      programs.build(make, static, traced),
      view,
      jnp.zeros(bandits.FEATURES),
      key,
      measure,
      optax.sgd(sign * learning_rate),
      steps=iterations,
      points=POINTS,
    )

  return program
