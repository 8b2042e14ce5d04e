"""Lists of the reference's samples, ranked by noisy scores, on the exact bandit.

One list serves losses of every layout: all of it, its best and worst, or its best. As
`bandits`, each function is a cell; a policy linear in shared features is trained on
half of the prompts and measured on the others.
"""

import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from xpo_jax import objectives, scored
from xpo_jax.studies.exact import bandits, paths, programs
from xpo_jax.testing import bandit
from xpo_jax.testing.bandit import Bandit
from xpo_jax.types import Array, Layout

SEEN = bandits.PROMPTS // 2
Demonstration = Literal["best", "any"]


def draw(
  key: Array, task: Bandit, prompt_B: Array, size: int, noise: float | Array
) -> tuple[Array, Array]:
  """Different samples of the reference with their scores, best score first.

  Args:
    key: PRNG key.
    task: the bandit.
    prompt_B: prompt of each list.
    size: completions of a list.
    noise: standard deviation of the error added to a true reward.

  Returns:
    Completions and scores, `[B, K]`.
  """
  of_samples, of_noise = jax.random.split(key)
  ref_BY = task.ref_logp_XY[prompt_B]
  # The largest of logits plus Gumbel variables: samples without replacement.
  _, sample_BK = jax.lax.top_k(
    ref_BY + jax.random.gumbel(of_samples, ref_BY.shape), size
  )
  reward_BK = task.reward_XY[prompt_B[:, None], sample_BK]
  score_BK = reward_BK + noise * jax.random.normal(of_noise, reward_BK.shape)
  order_BK = jnp.argsort(-score_BK, axis=1)
  return tuple(jnp.take_along_axis(x, order_BK, 1) for x in (sample_BK, score_BK))


def train(
  seed: int,
  *,
  objective: str,
  hparams: Mapping[str, Any],
  size: int,
  demonstration: Demonstration = "best",
  noise: float = 0.5,
  count: int = 300,
  steps: int = 300,
  learning_rate: float = 0.03,
) -> dict[str, Array]:
  """Trains on ranked lists; completions all have one token.

  Args:
    seed: of the task, as of `bandits.pairs`, the lists and the objective's draws.
    objective: of layout RANKED, of PAIR (best and worst) or DEMO (one of the list).
    hparams: of the objective.
    size: completions of a list.
    demonstration: of a loss of layout DEMO: the best of the list, or any of it.
    noise: standard deviation of a score's error, in units of the reward.
    count: lists.
    steps: of Adam.
    learning_rate: of Adam.

  Returns:
    `bandits.measures` along training, see `paths.descend`; data: true reward of the
    best of such lists on the held-out prompts, minus the reference's.
  """
  static, traced = programs.split(hparams)
  make = objectives.get(objective)
  program = _train(make, static, size, demonstration, count, steps)
  return program(jax.random.key(seed), traced, noise, learning_rate)


@functools.cache
def _train(make, static, size, demonstration, count, steps):
  @jax.jit
  def program(key, traced, noise, learning_rate):
    objective = programs.build(make, static, traced)
    of_task, of_lists, of_objective = jax.random.split(key, 3)
    task = bandits.world(of_task, False)
    keys = jax.random.split(of_lists, 4)
    prompt_B = jax.random.randint(keys[0], (count,), 0, SEEN)
    sample_BK, score_BK = draw(keys[1], task, prompt_B, size, noise)
    column_K = jnp.arange(size)
    if objective.layout is Layout.PAIR:
      column_K = jnp.array([0, size - 1])
    if objective.layout is Layout.DEMO:
      column_K = jnp.array([0])
      if demonstration == "any":
        sample_BK = jax.random.permutation(keys[2], sample_BK, 1, independent=True)
    at = (prompt_B[:, None], sample_BK[:, column_K])

    def view(theta, _):
      logp_BK = bandit.logp(task, theta)[at]
      return scored.from_sequence_logps(
        logp_BK,
        jnp.ones_like(logp_BK),
        task.ref_logp_XY[at],
        reward_BK=score_BK[:, column_K],
      )

    path = paths.descend(
      objective,
      view,
      jnp.zeros(bandits.FEATURES),
      of_objective,
      lambda theta: bandits.measures(task, theta, SEEN),
      optax.adam(learning_rate),
      steps=steps,
    )
    data = jnp.full(path["reward"].shape, _best(keys[3], task, size, noise))
    return path | {"data": data}

  return program


def _best(key, task, size, noise, copies=200):
  """True reward of the best of a list on held-out prompts, minus the reference's."""
  prompt_B = jnp.tile(jnp.arange(SEEN, len(task.reward_XY)), copies)
  sample_BK, _ = draw(key, task, prompt_B, size, noise)
  reference = (jnp.exp(task.ref_logp_XY) * task.reward_XY)[SEEN:].sum(1).mean()
  return task.reward_XY[prompt_B, sample_BK[:, 0]].mean() - reference
