"""Losses of a margin: the family that pairwise objectives choose from.

A link maps a margin (how far the chosen answer leads) to a loss. GPO (Tang et al.
2024, arXiv:2402.05749, equations not checked) calls it f and asks for a convex f with
f'(0) < 0; the savage loss is bounded and not convex.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from xpo_jax.types import Array


class Link(NamedTuple):
  """A loss of the margin.

  Attributes:
    name: what a table calls it.
    fn: margin -> loss, elementwise.
    convex: whether `fn` is convex on the whole line.
    slope_at_0: fn'(0), negative for every link here.
  """

  name: str
  fn: Callable[[Array], Array]
  convex: bool
  slope_at_0: float


def logistic(margin_B: Array) -> Array:
  """-log sigma(m): DPO."""
  return -jax.nn.log_sigmoid(margin_B)


def smoothed_logistic(margin_B: Array, label_smoothing: float | Array = 0.0) -> Array:
  """The logistic loss when a share of the labels is flipped, elementwise.

  (1 - e) (-log sigma(m)) + e (-log sigma(-m))

  Args:
    margin_B: how far the chosen answer leads, nats.
    label_smoothing: e, the probability that a label is flipped.
  """
  right_B, flipped_B = logistic(margin_B), logistic(-margin_B)
  return (1 - label_smoothing) * right_B + label_smoothing * flipped_B
