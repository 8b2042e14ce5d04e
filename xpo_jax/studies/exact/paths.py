"""Measures along training, for losses whose only tie to the start is its length."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from xpo_jax import scored
from xpo_jax.types import Array, Objective, Params, Scored

POINTS = 12


def ends(steps: int) -> list[int]:
  """Numbers of updates of a path's points, equally far apart in log, to `steps`."""
  return sorted({round(steps ** ((i + 1) / POINTS)) for i in range(POINTS)})


def descend(
  objective: Objective,
  view: Callable[[Params, Array], Scored],
  start: Params,
  key: Array,
  measure: Callable[[Params], dict[str, Array]],
  *,
  steps: int,
  learning_rate: float | Array,
  sign: float | Array = 1.0,
) -> dict[str, Array]:
  """Minimises an objective with Adam and measures on the way.

  Args:
    objective: any.
    view: (parameters, PRNG key of the step) -> the batch of the step under them.
    start: parameters to start from.
    key: PRNG key of the objective's random draws.
    measure: parameters -> metrics.
    steps: number of updates; static.
    learning_rate: of Adam.
    sign: of the loss; -1 ascends.

  Returns:
    step: updates done, `ends(steps)`; the metrics at each of them.
  """
  chain = optax.adam(learning_rate)

  def loss(params: Params, state, key: Array):
    out = scored.evaluate(objective, view(params, key), state, key)
    return sign * out.loss, out.state

  def step(carry, key):
    params, moments, state = carry
    grad, state = jax.grad(loss, has_aux=True)(params, state, key)
    update, moments = chain.update(grad, moments)
    params = optax.apply_updates(params, update)
    return (params, moments, state), params

  initial = (start, chain.init(start), objective.init())
  _, params_T = jax.lax.scan(step, initial, jax.random.split(key, steps))
  place = jnp.array(ends(steps))
  path = jax.vmap(measure)(jax.tree.map(lambda x_T: x_T[place - 1], params_T))
  return path | {"step": place.astype(jnp.float32)}
