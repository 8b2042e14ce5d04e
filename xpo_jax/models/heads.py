"""Scalar heads on the decoder's hidden states, for values and rewards."""

import jax
import jax.numpy as jnp

from xpo_jax.types import Array, Params


def init_value_head(width: int) -> Params:
  """Initialises a value head with zeros, so that every initial value is 0.

  As in the code of Ziegler et al. 2019 (arXiv:1909.08593). A random head would have
  values of about one, which add noise to the first advantages.

  Args:
    width: D of the hidden states.

  Returns:
    `{"kernel_D", "bias"}`, float32.
  """
  return {"kernel_D": jnp.zeros(width, jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def init_reward_head(key: Array, width: int) -> Params:
  """Initialises a reward head with kernel ~ N(0, 1 / (width + 1)) and bias 0.

  As Stiennon et al. 2020 (arXiv:2009.01325): rewards of about one on normalised hidden
  states.

  Args:
    key: PRNG key.
    width: D of the hidden states.

  Returns:
    `{"kernel_D", "bias"}`, float32.
  """
  kernel_D = jax.random.normal(key, (width,), jnp.float32) * (width + 1) ** -0.5
  return {"kernel_D": kernel_D, "bias": jnp.zeros((), jnp.float32)}


def logical_axes() -> Params:
  """Returns the axis names of the head's parameters."""
  return {"kernel_D": ("embed",), "bias": ()}


def value(params: Params, hidden: Array) -> Array:
  """Applies a head: `hidden [..., D]` to values `[...]`, in at least float32.

  Example:
    >>> head = {"kernel_D": jnp.array([1.0, -2.0]), "bias": jnp.array(0.5)}
    >>> float(value(head, jnp.array([3.0, 1.0])))
    1.5
  """
  hidden = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
  return jnp.dot(hidden, params["kernel_D"]) + params["bias"]
