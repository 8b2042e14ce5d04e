"""Measures along training, for losses whose only tie to the start is its length."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from xpo_jax.testing import bandit
from xpo_jax.types import Array, Objective, Params, Scored

POINTS = 12


def ends(steps: int, points: int = POINTS) -> list[int]:
  """Numbers of updates at up to `points` points, the last at `steps`, even in log."""
  return sorted({round(steps ** (i / points)) for i in range(1, points + 1)})


def descend(
  objective: Objective,
  view: Callable[[Params, Array], Scored],
  start: Params,
  key: Array,
  measure: Callable[[Params], dict[str, Array]],
  chain: optax.GradientTransformation,
  *,
  steps: int,
  points: int = POINTS,
) -> dict[str, Array]:
  """Minimises an objective and measures on the way.

  Args:
    objective, view, start, key, chain: see `bandit.descent`.
    measure: parameters -> metrics.
    steps: number of updates; static.
    points: see `ends`.

  Returns:
    step: updates done, `ends(steps, points)`; the metrics at each of them.
  """
  params_T = bandit.descent(
    objective, view, start, key, chain, steps=steps, points=steps
  )
  place = jnp.array(ends(steps, points))
  path = jax.vmap(measure)(jax.tree.map(lambda x_T: x_T[place - 1], params_T))
  return path | {"step": place.astype(jnp.float32)}
