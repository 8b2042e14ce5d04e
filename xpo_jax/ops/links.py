"""Link functions: losses of the margin, shared by the pairwise objectives.

A link maps a margin (the reward of the chosen completion minus that of the rejected
one) to a loss. GPO (Tang et al. 2024, arXiv:2402.05749) calls it f and requires a
convex f with f'(0) < 0; the savage loss is bounded and not convex.
Every function here is elementwise and finite, with its gradient, for margins of +-1000.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from xpo_jax.types import Array


class Link(NamedTuple):
  """A loss of the margin.

  Attributes:
    name: its name in configurations and tables.
    fn: margin -> loss, elementwise.
    convex: whether `fn` is convex on the whole line.
    slope_at_0: fn'(0), negative for every link here.
  """

  name: str
  fn: Callable[[Array], Array]
  convex: bool
  slope_at_0: float

  def __repr__(self) -> str:
    return self.name


def logistic(margin_B: Array) -> Array:
  """-log sigma(m): DPO."""
  return -jax.nn.log_sigmoid(margin_B)


def smoothed_logistic(margin_B: Array, label_smoothing: float | Array = 0.0) -> Array:
  """Logistic loss with label smoothing, elementwise; see `smoothed`."""
  return smoothed(LOGISTIC, margin_B, label_smoothing)


def hinge(margin_B: Array) -> Array:
  """max(0, 1 - m): RSO's hinge-norm, SLiC's form."""
  # maximum splits the gradient at the kink; relu would give 0 there.
  return jnp.maximum(1 - margin_B, 0)


def squared(margin_B: Array) -> Array:
  """(m - 1)^2: IPO, up to scale (its beta is half of GPO's)."""
  return (margin_B - 1) ** 2


def exponential(margin_B: Array) -> Array:
  """exp(-m): AdaBoost's loss.

  Beyond an exponent of 0.8 log(largest number of the type), 71 in float32 and 567 in
  float64, exp is continued by its tangent: finite, and still convex.
  """
  limit = 0.8 * np.log(jnp.finfo(jnp.result_type(margin_B)).max)
  inside_B = jnp.minimum(-margin_B, limit)
  return jnp.exp(inside_B) * (1 + jnp.maximum(-margin_B - limit, 0))


def truncated_quadratic(margin_B: Array) -> Array:
  """max(0, 1 - m)^2."""
  return hinge(margin_B) ** 2


def savage(margin_B: Array) -> Array:
  """sigma(-m)^2 = 1 / (1 + exp(m))^2: bounded, not convex, robust to wrong labels."""
  return jax.nn.sigmoid(-margin_B) ** 2


def smoothed(
  link: Link, margin_B: Array, label_smoothing: float | Array = 0.0
) -> Array:
  """A link with label smoothing, (1 - e) f(m) + e f(-m), elementwise.

  Args:
    link: f.
    margin_B: reward of the chosen completion minus that of the rejected one, nats.
    label_smoothing: e, the probability that a label is flipped.
  """
  clean_B = link.fn(margin_B)
  flipped_B = link.fn(-margin_B)
  return (1 - label_smoothing) * clean_B + label_smoothing * flipped_B


LOGISTIC = Link("logistic", logistic, convex=True, slope_at_0=-0.5)
HINGE = Link("hinge", hinge, convex=True, slope_at_0=-1.0)
SQUARED = Link("squared", squared, convex=True, slope_at_0=-2.0)
EXPONENTIAL = Link("exponential", exponential, convex=True, slope_at_0=-1.0)
TRUNCATED_QUADRATIC = Link(
  "truncated_quadratic", truncated_quadratic, convex=True, slope_at_0=-2.0
)
SAVAGE = Link("savage", savage, convex=False, slope_at_0=-0.25)

# GPO's family by name, for configurations.
LINKS = {
  link.name: link
  for link in (LOGISTIC, HINGE, SQUARED, EXPONENTIAL, TRUNCATED_QUADRATIC, SAVAGE)
}
