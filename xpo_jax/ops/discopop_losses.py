"""Margin losses discovered by the language-model search of DiscoPOP.

Lu et al. 2024, arXiv:2406.08414, Appendix E, in the corrected forms that the paper
gives: the margin is beta times the difference of log-ratios everywhere, and where a
loss modulates itself by the margin, the margin is divided by 0.05, the beta of the
search. LRML, which the paper calls DiscoPOP, is the objective `discopop`. DBAQL, AQL
and AQFL blend two losses by batch statistics, through which gradient flows: the loss of
a row depends on the other rows of the batch, so it cannot be accumulated over
microbatches, and there is no objective for it.
"""

import jax
import jax.numpy as jnp

from xpo_jax.ops import links
from xpo_jax.types import Array

_TAU = 0.05  # beta of the search


def lrml(margin_B: Array, tau: float | Array = _TAU) -> Array:
  """Log-ratio modulated loss (Eq. 27): DiscoPOP.

  (1 - s) (-log sigma(m)) + s exp(-m),   s = sigma(m / tau)

  The exponential dominates on pairs that are ranked correctly. (Eq. 27 prints exp(m);
  the paper's code and results use exp(-m).) Not convex: noisy pairs collect in a local
  minimum near m = 0. With tau <= 1, s exp(-m) is bounded; computed as one exponential,
  it does not overflow.
  """
  logistic_B = jax.nn.sigmoid(-margin_B / tau) * links.logistic(margin_B)
  return logistic_B + jnp.exp(jax.nn.log_sigmoid(margin_B / tau) - margin_B)


def dbaql(margin_B: Array) -> Array:
  """Dynamic blended adaptive quantile loss (Eq. 9): blended by the batch variance."""
  blend = jax.nn.sigmoid(_variance(margin_B / _TAU))
  logistic_B = links.logistic(margin_B / 0.9)
  return blend * logistic_B + (1 - blend) * links.exponential(0.9 * margin_B)


def aql(margin_B: Array) -> Array:
  """Adaptive quantile loss (Eq. 11 to 13): hinge above a quantile, logistic below."""
  z_B = margin_B / _TAU
  quantile = 0.5 + 0.01 * (jax.nn.sigmoid(z_B.mean()) - 0.5)
  blend_B = jax.nn.sigmoid(quantile - z_B)
  return _logistic_or_hinge(blend_B, margin_B)


def aqfl(margin_B: Array) -> Array:
  """Adaptive quantile feedback loss (Eq. 20 to 24): logistic far from a quantile.

  The quantile follows the authors' code, which the paper also prints: it uses the
  standard deviation where Eq. 24 writes the variance.
  """
  z_B = margin_B / _TAU
  spread = _root(_variance(z_B)) * jax.nn.sigmoid(-z_B).mean()
  quantile = spread + 0.05 * (jax.nn.sigmoid(z_B.mean()) - spread)
  blend_B = jax.nn.sigmoid(0.1 * jnp.abs(z_B - quantile))
  return _logistic_or_hinge(blend_B, margin_B)


def padll(margin_B: Array, weight: float | Array = 0.9) -> Array:
  """Performance adaptive decay logistic loss (Eq. 18): misranked pairs weigh half."""
  return jnp.where(margin_B < 0, weight / 2, weight) * links.logistic(margin_B)


def cell(margin_B: Array) -> Array:
  """Combined exponential and logistic loss (Eq. 26), half and half."""
  return 0.5 * links.exponential(margin_B) + 0.5 * links.logistic(margin_B)


def pfl(margin_B: Array, correct_B: Array) -> Array:
  """Policy focused loss (Eq. 29): half the logistic loss on correctly ranked pairs.

  On the others twice the hinge loss. The margin is beta times the difference, as in the
  authors' code; Eq. 29 divides it by 0.05.

  Args:
    margin_B: beta times the difference of log-ratios.
    correct_B: whether log pi(y_w|x) > log pi(y_l|x), without the reference.
  """
  logistic_B = 0.5 * links.logistic(margin_B)
  hinge_B = 2 * links.hinge(margin_B)
  return jnp.where(correct_B, logistic_B, hinge_B)


def _logistic_or_hinge(blend_B: Array, margin_B: Array) -> Array:
  return blend_B * links.logistic(margin_B) + (1 - blend_B) * links.hinge(margin_B)


def _variance(x_B: Array) -> Array:
  """Unbiased variance; 0 for a single row."""
  return ((x_B - x_B.mean()) ** 2).sum() / max(x_B.size - 1, 1)


def _root(x: Array) -> Array:
  """Square root with gradient 0 at 0."""
  return jnp.where(x > 0, jnp.sqrt(jnp.where(x > 0, x, 1)), 0)
